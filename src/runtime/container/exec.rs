//! A command run in a running container.

use std::{
    fs::File,
    io::Read,
    os::fd::{AsRawFd, OwnedFd},
};

use libcontainer::{
    container::{Container, ContainerStatus, builder::ContainerBuilder},
    syscall::syscall::SyscallType,
};

use super::{
    super::{ContainerId, Error, ExecConfig, Result, protocol},
    Pod, Profile, Report,
    capture::Capture,
    create::{Console, Stdio, give_streams, give_terminal, last_wins, set_oom_score},
    executor::{Command, Failure, Runner},
    spec,
};

/// Runs the command and reports it on `control`, with the terminal's master where there is one.
pub(in crate::runtime) fn exec(
    pod: &Pod,
    id: &ContainerId,
    init: u32,
    profile: Profile,
    config: &ExecConfig,
    stdio: Option<Stdio>,
    control: &OwnedFd,
) -> Result<()> {
    let fail = |reason: String| Error::Start { id: id.clone(), exit_code: 128, reason };
    let mut capture = Capture::start().map_err(|e| fail(e.to_string()))?;
    super::enter_private_mounts(pod)?;
    set_oom_score(profile.oom_score_adj)?;
    let (read, status) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| fail(e.to_string()))?;

    let result = build(pod, id, init, profile, config, stdio, &status);
    let mut said = Vec::new();
    drop(status);
    // Ends when the command is executed or its process has ended; without bytes there was no failure of the command itself.
    let _ = File::from(read).read_to_end(&mut said);
    if let Ok(failure) = serde_json::from_slice::<Failure>(&said) {
        return Err(Error::Start { id: id.clone(), exit_code: failure.code, reason: failure.reason });
    }
    let (pid, master) = result.map_err(|error| fail(capture.first().unwrap_or(error)))?;
    let fds: Vec<_> = master.iter().map(|m| m.as_raw_fd()).collect();
    protocol::send(control, &Report::Done { pid }, &fds).map_err(|e| fail(format!("report to the shim: {e}")))
}

fn build(
    pod: &Pod,
    id: &ContainerId,
    init: u32,
    profile: Profile,
    config: &ExecConfig,
    stdio: Option<Stdio>,
    status: &OwnedFd,
) -> Result<(u32, Option<OwnedFd>), String> {
    let text = |e: &dyn std::error::Error| e.to_string();
    let (bundle, state) = (pod.scratch().join("bundle"), pod.scratch().join("state"));
    let mut env = profile.command.env;
    if config.tty && !env.iter().any(|e| e.starts_with("TERM=")) {
        env.push("TERM=xterm".into());
    }
    env.extend(config.env.iter().cloned());
    let command = Command { args: config.args.clone(), env: last_wins(env), ..profile.command };
    if let Some(stdio) = &stdio {
        give_streams(stdio, &profile.identity);
    }
    let process = spec::process(&command, &profile.identity, config.tty);
    super::write_file(&bundle.join("config.json"), &profile.spec).map_err(|e| text(&e))?;
    super::write_file(&bundle.join("process.json"), &process).map_err(|e| text(&e))?;

    let name = id.to_string();
    let own = state.join(&name);
    super::make_directory(&own).map_err(|e| text(&e))?;
    let container =
        Container::new(&name, ContainerStatus::Running, Some(init as i32), &bundle, &own).map_err(|e| text(&e))?;
    container.save().map_err(|e| text(&e))?;

    let console = config.tty.then(|| Console::listen(pod)).transpose().map_err(|e| text(&e))?;
    let mut builder = ContainerBuilder::new(name, SyscallType::Linux)
        .with_executor(Runner { command, status: status.as_raw_fd() })
        .with_root_path(state)
        .map_err(|e| text(&e))?
        .with_console_socket(console.as_ref().map(|_| pod.scratch().join(Console::NAME)));
    if let Some(stdio) = stdio {
        builder = builder.with_stdin(stdio.stdin).with_stdout(stdio.stdout).with_stderr(stdio.stderr);
    }
    let tenant = builder.as_tenant().with_process(Some(bundle.join("process.json"))).with_detach(true).as_sibling(true);
    let pid = tenant.build().map_err(|e| text(&e))?;
    let master = console.map(Console::master).transpose().map_err(|e| text(&e))?;
    if let Some(master) = &master {
        give_terminal(master, &profile.identity);
    }
    Ok((pid.as_raw() as u32, master))
}
