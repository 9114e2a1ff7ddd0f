use serde_json::Value;

use super::{
    super::{log_body, spdy_command, websocket},
    *,
};
use crate::link::stream::{LogOptions, MAX_FRAME, Streams, WINDOW};
use http_body_util::BodyExt;

const ALL: Streams = Streams { stdin: true, stdout: true, stderr: true, tty: false };

#[tokio::test]
async fn websocket_carries_a_process() {
    for (input, status) in [("hello", SUCCESS), ("fail", EXIT_3)] {
        let (client, server) = tokio::io::duplex(1024);
        let (near, pod) = Stream::pair();
        tokio::spawn(process(pod));
        let serving = tokio::spawn(websocket::remote_command(server, near));
        let mut client = Web::new(client).await;
        assert_eq!(client.next().await, Ok((1, "started\n".into())));
        client.send(&[&[0], input.as_bytes()].concat()).await;
        assert_eq!(client.next().await, Ok((1, input.into())));
        client.send(b"\x04{\"Width\":80,\"Height\":24}").await;
        assert_eq!(client.next().await, Ok((2, "{\"Width\":80,\"Height\":24}".into())));
        for ignored in [&[0][..], &[9, 9], &[255, 1], &[255], &[3, 1]] {
            client.send(ignored).await;
        }
        let long = "x".repeat(3 * MAX_FRAME);
        client.send(&[&[0], long.as_bytes()].concat()).await;
        let mut back = String::new();
        while back.len() < long.len() {
            back.push_str(&client.next().await.unwrap().1);
        }
        client.send(&[255, 0]).await;
        assert_eq!((client.next().await, client.next().await), (Ok((3, status.into())), Err(Some(1000))));
        drop(client);
        soon(serving).await.unwrap();
    }
}

#[tokio::test]
async fn spdy_carries_a_process() {
    for (input, status) in [("hello", SUCCESS), ("fail", EXIT_3)] {
        let (client, server) = tokio::io::duplex(1024);
        let (near, pod) = Stream::pair();
        tokio::spawn(process(pod));
        let tty = Streams { tty: true, ..ALL };
        let serving = tokio::spawn(spdy_command::serve(server, tty, near));
        let mut client = Spdy::new(client);
        let mut ids = Vec::new();
        for kind in ["error", "stdin", "stdout", "stderr", "resize"] {
            ids.push(client.open(&[("streamtype", kind)]).await);
        }
        let again = client.open(&[("streamtype", "stdin")]).await;
        let &[error, stdin, stdout, stderr, resize] = &ids[..] else { panic!() };
        client.send(resize, "{\"Width\":80,\"Height\":24}\n", false).await;
        client.send(stdin, input, false).await;
        client.send(77, "no such stream", true).await;
        client.write(&spdy::ping(5)).await;
        let mut seen = Vec::new();
        while !seen.contains(&spdy::Event::Ping(5)) {
            seen.push(client.event().await.unwrap());
        }
        assert!(seen.contains(&spdy::Event::Reset { id: again }));
        client.send(stdin, "", true).await;
        let mut texts = client.finish(&[error, stdout, stderr]).await;
        for event in seen {
            if let spdy::Event::Data { id, data, .. } = event {
                let index = [error, stdout, stderr].iter().position(|i| *i == id).unwrap();
                texts[index].insert_str(0, std::str::from_utf8(&data).unwrap());
            }
        }
        assert_eq!(texts[0], status);
        // Output before and after the ping was put together in any order.
        assert_eq!(texts[1].len(), "started\n".len() + input.len());
        assert_eq!(texts[2], "{\"Width\":80,\"Height\":24}\n");
        drop(client);
        soon(serving).await.unwrap();
    }
}

#[tokio::test]
async fn a_lost_node_is_reported() {
    let (client, server) = tokio::io::duplex(1024);
    let (near, pod) = Stream::pair();
    tokio::spawn(websocket::remote_command(server, near));
    drop(pod);
    let (channel, status) = Web::new(client).await.next().await.unwrap();
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!((channel, &status["reason"], &status["code"]), (3, &"InternalError".into(), &500.into()));

    let (client, server) = tokio::io::duplex(1024);
    let (near, pod) = Stream::pair();
    let streams = Streams { stdout: true, ..Streams::default() };
    tokio::spawn(spdy_command::serve(server, streams, near));
    drop(pod);
    let mut client = Spdy::new(client);
    let ids = [client.open(&[("streamtype", "error")]).await, client.open(&[("streamtype", "stdout")]).await];
    assert!(client.finish(&ids).await[0].contains("InternalError"));
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_process() {
    for spdy in [false, true] {
        let (client, server) = tokio::io::duplex(1024);
        let (near, mut pod) = Stream::pair();
        let serving = tokio::spawn(async move {
            if spdy {
                spdy_command::serve(server, ALL, near).await;
            } else {
                websocket::remote_command(server, near).await;
            }
        });
        drop(client);
        assert!(soon(pod.rx.recv()).await.is_none());
        soon(serving).await.unwrap();
    }
}

#[tokio::test]
async fn a_process_that_does_not_read_stops_the_client() {
    let (client, server) = tokio::io::duplex(1024);
    let (near, pod) = Stream::pair();
    tokio::spawn(websocket::remote_command(server, near));
    let mut client = Web::new(client).await;
    let message = Message::binary([&[0][..], &[7; MAX_FRAME]].concat());
    let mut sent = 0;
    while tokio::time::timeout(Duration::from_secs(1), client.0.send(message.clone())).await.is_ok() {
        sent += 1;
    }
    assert!((WINDOW..WINDOW + 8).contains(&sent), "{sent}");
    drop(pod);
}

#[tokio::test]
async fn logs_are_plain_bytes_or_an_error() {
    let run = |frames: Vec<Frame>| async move {
        let (near, pod) = Stream::pair();
        tokio::spawn(async move {
            for frame in frames {
                pod.tx.send(frame).await.unwrap();
            }
        });
        log_body(near).await
    };
    let failed = r#"{"status":"Failure","message":"previous terminated container \"c\" not found","code":400}"#;
    let body = run(vec![frame(Channel::Stdout, "a\n"), frame(Channel::Stdout, "b\n"), frame(Channel::Error, SUCCESS)]);
    assert_eq!(body.await.unwrap().collect().await.unwrap().to_bytes(), "a\nb\n");
    let empty = run(vec![frame(Channel::Error, SUCCESS)]).await.unwrap();
    assert!(empty.collect().await.unwrap().to_bytes().is_empty());
    let refused = run(vec![frame(Channel::Error, failed)]).await.unwrap_err();
    assert_eq!((refused.code, refused.message), (400, "previous terminated container \"c\" not found".into()));
    assert_eq!(run(vec![]).await.unwrap_err().code, 500);
    let cut = run(vec![frame(Channel::Stdout, "a\n"), frame(Channel::Error, failed)]).await.unwrap();
    assert!(cut.collect().await.is_err(), "a log that is cut off is not a complete one");
    let quiet = Stream::pair();
    assert!(log_body(quiet.0).await.is_ok(), "a log without lines is an answer too");
    assert!(!LogOptions::default().follow);
}
