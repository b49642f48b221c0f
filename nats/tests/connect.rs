//! Connecting: fast to fail, and with words that help.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs, dead_code, unreachable_pub, reason = "tests")]

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use glasshouse_nats::{ConnectOptions, Error, ErrorKind, NatsServer, ServerOptions, connect};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

/// A server that says it has this version and answers the handshake.
async fn pretend(version: &'static str, jetstream: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (read, mut write) = socket.into_split();
                let info = serde_json::json!({
                    "server_id": "FAKE", "version": version, "proto": 1, "headers": true, "max_payload": 1_048_576,
                    "jetstream": jetstream, "host": "127.0.0.1", "port": address.port(),
                });
                let _ = write.write_all(format!("INFO {info}\r\n").as_bytes()).await;
                let mut lines = BufReader::new(read).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    if line.starts_with("PING") {
                        let _ = write.write_all(b"PONG\r\n").await;
                    }
                }
            });
        }
    });
    format!("nats://{address}")
}

#[tokio::test]
async fn nobody_there_fails_fast() {
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let started = Instant::now();
    let error = connect(ConnectOptions::new(format!("nats://{address}"), "test")).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Retryable);
    assert!(error.to_string().contains("glasshouse up"), "{error}");
}

#[tokio::test]
async fn something_that_does_not_speak_nats_fails_within_the_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let mut options = ConnectOptions::new(url, "test");
    options.timeout = Duration::from_millis(500);
    let started = Instant::now();
    let error = connect(options).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn an_old_server_is_refused_with_both_versions() {
    let url = pretend("2.10.0", true).await;
    let error = connect(ConnectOptions::new(url, "test")).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::TooOld { .. }), "{text}");
    assert_eq!(error.kind(), ErrorKind::Fatal);
    for part in ["2.10.0", "2.12.0", "upgrade", "scripts/setup.sh"] {
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn a_server_without_jetstream_is_refused() {
    let url = pretend("2.12.0", false).await;
    let error = connect(ConnectOptions::new(url, "test")).await.unwrap_err();
    assert!(matches!(error, Error::NoJetStream { .. }), "{error}");
}

#[tokio::test]
async fn bad_addresses_and_credentials_are_named() {
    let error = connect(ConnectOptions::new("nats://127.0.0.1:port", "test")).await.unwrap_err();
    assert!(matches!(error, Error::BadUrl { .. }), "{error}");
    let options = ConnectOptions::new("nats://127.0.0.1:1", "test");
    let error = connect(options.credentials(Some("/nowhere.creds".into()))).await.unwrap_err();
    assert!(error.to_string().contains("/nowhere.creds"), "{error}");
}

#[tokio::test]
async fn the_server_stops_cleanly_and_keeps_its_store() {
    let broker = common::broker().await;
    let status = broker.server.stop().await.unwrap();
    // SIGTERM: the server shuts its store down and exits by itself, it does not die from the signal.
    assert!(status.code().is_some(), "{status}");

    let again = NatsServer::start(ServerOptions::private(broker.dir.path())).await.unwrap();
    let bus = connect(ConnectOptions::new(again.url(), "test")).await.unwrap();
    let topology = glasshouse_nats::Topology::embedded(1).unwrap();
    assert_eq!(topology.check(&bus).await.unwrap(), []);
}

#[tokio::test]
async fn a_private_server_takes_who_has_its_token_and_nobody_says_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = NatsServer::start(ServerOptions::private(dir.path())).await.unwrap();
    let url = server.url().to_owned();
    let (token, address) = url.strip_prefix("nats://").unwrap().split_once('@').unwrap();
    connect(ConnectOptions::new(&url, "test")).await.unwrap();
    let other = token.chars().rev().collect::<String>();
    let others = format!("{other}:{token}");
    for (user, secret) in [("", ""), (&*format!("{other}@"), &*other), (&*format!("{others}@"), token)] {
        let error =
            connect(ConnectOptions::new(format!("nats://{user}{address}"), "test")).await.unwrap_err();
        assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
        let text = format!("{error} {error:?}");
        assert!(text.contains(address) && (secret.is_empty() || !text.contains(secret)), "{text}");
    }
    // What holds it is only ours to read, and the next start has the same.
    for file in ["nats.token", "nats-server.conf"] {
        let path = dir.path().join(file);
        assert!(std::fs::read_to_string(&path).unwrap().contains(token), "{file}");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{file}");
    }
    server.stop().await;
    let again = NatsServer::start(ServerOptions::private(dir.path())).await.unwrap();
    assert!(again.url().contains(token));
}

#[tokio::test]
async fn a_user_of_an_address_is_who_connects() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = ServerOptions::new(dir.path());
    options.more = "authorization { user: ana, password: \"s3@cret\" }\n".into();
    let server = NatsServer::start(options).await.unwrap();
    let address = server.url().strip_prefix("nats://").unwrap();
    connect(ConnectOptions::new(format!("nats://ana:s3%40cret@{address}"), "test")).await.unwrap();
    let error =
        connect(ConnectOptions::new(format!("nats://ana:wr%40ng@{address}"), "test")).await.unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(matches!(error, Error::Unauthorized { .. }) && !text.contains("ng@"), "{text}");
}

#[tokio::test]
async fn a_taken_port_is_said_with_the_log() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut options = ServerOptions::private(dir.path());
    options.port = taken.local_addr().unwrap().port();
    let error = NatsServer::start(options).await.unwrap_err();
    assert!(error.to_string().contains("address already in use"), "{error}");
}

#[tokio::test]
async fn a_missing_binary_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = ServerOptions::private(dir.path());
    options.binary = Some(dir.path().join("no-server"));
    let error = NatsServer::start(options).await.unwrap_err();
    assert!(error.to_string().contains("no-server is not there"), "{error}");
}

/// Runs in a process of its own, started by the test below: starts a server, says its pid and waits to be killed.
#[tokio::test]
async fn helper_that_is_killed() {
    let Some(dir) = std::env::var_os("GLASSHOUSE_TEST_HELPER_DIR") else { return };
    let server = NatsServer::start(ServerOptions::private(&dir)).await.unwrap();
    std::fs::write(std::path::Path::new(&dir).join("pid"), server.pid().to_string()).unwrap();
    std::future::pending::<()>().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_server_dies_with_a_killed_parent() {
    let dir = tempfile::tempdir().unwrap();
    let mut parent = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "helper_that_is_killed"])
        .env("GLASSHOUSE_TEST_HELPER_DIR", dir.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let pid =
        until(|| std::fs::read_to_string(dir.path().join("pid")).ok().filter(|pid| !pid.is_empty())).await;
    let state = format!("/proc/{pid}/stat");
    assert!(std::path::Path::new(&state).exists());
    parent.kill().unwrap();
    parent.wait().unwrap();
    // Gone, or a zombie that nobody reaps where the tests' init does not.
    until(|| {
        let stat = std::fs::read_to_string(&state).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    })
    .await;
}

async fn until<T>(mut condition: impl FnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + Duration::from_secs(15);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < give_up, "it did not happen within 15 s");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_directory_has_one_server_and_is_free_again_when_that_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let stale = dir.path().join("nats-server_1.ports");
    std::fs::write(&stale, r#"{"nats": ["nats://127.0.0.1:1"]}"#).unwrap();
    let first = NatsServer::start(ServerOptions::private(dir.path())).await.unwrap();
    assert!(!stale.exists(), "another server's ports file");
    let configuration = std::fs::read(dir.path().join("nats-server.conf")).unwrap();

    let mut options = ServerOptions::private(dir.path());
    options.max_file_store_bytes = 1 << 30;
    let text = NatsServer::start(options).await.unwrap_err().to_string();
    for part in [&*dir.path().display().to_string(), "another", "stop it", "nats.url"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(std::fs::read(dir.path().join("nats-server.conf")).unwrap(), configuration, "nothing written");
    connect(ConnectOptions::new(first.url(), "test")).await.unwrap();

    first.kill().await;
    NatsServer::start(ServerOptions::private(dir.path())).await.unwrap().stop().await;
}

#[tokio::test]
async fn the_lock_is_the_servers_own_too() {
    use nix::fcntl::{Flock, FlockArg};
    let dir = tempfile::tempdir().unwrap();
    let server = NatsServer::start(ServerOptions::private(dir.path())).await.unwrap();
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
    let lock = dir.path().canonicalize().unwrap().join("lock");
    let holds = descriptors.flatten().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|path| path == lock));
    assert!(holds, "it would lose the lock with us");
    server.stop().await;
    let file = std::fs::File::open(lock).unwrap();
    Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
}
