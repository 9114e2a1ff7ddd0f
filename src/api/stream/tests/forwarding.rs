use super::{
    super::{Socket, channels, spdy_forward, tunnel},
    *,
};

async fn connect<S: Socket>(client: &mut Spdy<S>, port: &str, request: &str) -> (u32, u32) {
    let headers = |kind| [("streamtype", kind), ("port", port), ("requestid", request)];
    let error = client.open(&headers("error")).await;
    client.send(error, "", true).await;
    (client.open(&headers("data")).await, error)
}

/// Several connections, good and bad, over one SPDY session.
async fn talk<S: Socket>(mut client: Spdy<S>) {
    let (first, first_error) = connect(&mut client, "80", "0").await;
    let (second, second_error) = connect(&mut client, "81", "1").await;
    client.send(second, "two", true).await;
    assert_eq!(client.finish(&[second, second_error]).await, ["two", ""]);
    client.send(first, "one", false).await;
    client.send(first, " more", true).await;
    assert_eq!(client.finish(&[first, first_error]).await, ["one more", ""]);
    for (port, text) in [("1", "connection refused"), ("2", "lost connection to pod")] {
        let (data, error) = connect(&mut client, port, port).await;
        client.send(data, "x", false).await;
        let texts = client.finish(&[data, error]).await;
        assert!(
            texts[1].starts_with(&format!("error forwarding port {port}: ")) && texts[1].ends_with(text),
            "{texts:?}"
        );
    }
    // kubectl resets a data stream and then waits for the end of the error stream.
    let (data, error) = connect(&mut client, "80", "5").await;
    client.write(&spdy::reset(data, 5)).await;
    assert_eq!(client.finish(&[error]).await, [""]);
    for headers in [[("streamtype", "data"), ("port", "0")], [("streamtype", "other"), ("port", "80")]] {
        let id = client.open(&headers).await;
        assert_eq!(client.event().await.unwrap(), spdy::Event::Reset { id });
    }
}

#[tokio::test]
async fn spdy_carries_connections() {
    let (client, server) = tokio::io::duplex(1024);
    let serving = tokio::spawn(spdy_forward::serve(server, echo_pod()));
    talk(Spdy::new(client)).await;
    soon(serving).await.unwrap();
}

#[tokio::test]
async fn a_websocket_carries_spdy() {
    let (outer, server) = tokio::io::duplex(1024);
    let serving = tokio::spawn(tunnel::serve(server, echo_pod()));
    let (client, inner) = tokio::io::duplex(1024);
    let wrapping = tokio::spawn(async move {
        let (mut sink, mut source) = Web::new(outer).await.0.split();
        let (mut from, mut to) = tokio::io::split(inner);
        let out = async {
            let mut buffer = vec![0; 100];
            while let Ok(read @ 1..) = tokio::io::AsyncReadExt::read(&mut from, &mut buffer).await {
                sink.send(Message::binary(buffer[..read].to_vec())).await.unwrap();
            }
            sink.close().await.unwrap();
        };
        let back = async {
            while let Some(Ok(message)) = source.next().await {
                // The client is dropped at the end of the test.
                let _ = to.write_all(&message.into_data()).await;
            }
        };
        tokio::join!(out, back);
    });
    talk(Spdy::new(client)).await;
    soon(serving).await.unwrap();
    soon(wrapping).await.unwrap();
}

#[tokio::test]
async fn a_session_is_bounded() {
    let (client, server) = tokio::io::duplex(1 << 20);
    tokio::spawn(spdy_forward::serve(server, echo_pod()));
    let mut client = Spdy::new(client);
    let mut refused = 0;
    for request in 0..300 {
        connect(&mut client, "80", &request.to_string()).await;
    }
    client.write(&spdy::ping(1)).await;
    loop {
        match client.event().await.unwrap() {
            spdy::Event::Reset { .. } => refused += 1,
            spdy::Event::Ping(_) => break,
            _ => {}
        }
    }
    assert_eq!(refused, 2 * (300 - 256));
}

#[tokio::test]
async fn channels_carry_connections() {
    let (client, server) = tokio::io::duplex(1024);
    let serving = tokio::spawn(async { channels::serve(server, &[80, 1, 0x2000], echo_pod()).await });
    let mut client = Web::new(client).await;
    let mut messages = Vec::new();
    while messages.len() < 7 {
        messages.push(client.next().await.unwrap());
    }
    let of = |channel: u8| messages.iter().filter(move |(c, _)| *c == channel).map(|(_, text)| text.as_str());
    for (channel, port) in [(0, "P\0"), (1, "P\0"), (2, "\x01\0"), (3, "\x01\0"), (4, "\0 "), (5, "\0 ")] {
        assert_eq!(of(channel).next(), Some(port), "{channel}");
    }
    assert!(of(3).nth(1).unwrap().contains("connection refused"));
    client.send(b"\x04hello").await;
    assert_eq!(client.next().await, Ok((4, "hello".into())));
    for ignored in [&[1, 1][..], &[6, 6], &[200, 0], &[255, 9]] {
        client.send(ignored).await;
    }
    client.send(&[255, 4]).await;
    client.send(b"\x00bye").await;
    assert_eq!(client.next().await, Ok((0, "bye".into())));
    client.send(&[255, 0]).await;
    assert_eq!(client.next().await, Err(Some(1000)));
    drop(client);
    soon(serving).await.unwrap();
}
