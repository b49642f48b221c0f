//! A link over TLS, by certificates that the system trusts. Skipped, with a line that says so, where there is no `openssl` to make one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Broker, execution};
use glasshouse_guest_link::{Receiver as _, StreamReceiver, ToHost, Transport as _};
use glasshouse_guest_nats::{GuestEnd, HostEnd};

const DIR: &str = "GLASSHOUSE_TEST_TLS";
const SOON: Duration = Duration::from_secs(20);
const CONFIGURATION: &str = "[req]\ndistinguished_name = dn\nx509_extensions = of\n[dn]\n[of]\n\
    subjectAltName = DNS:localhost,IP:127.0.0.1\nbasicConstraints = CA:FALSE\n";

/// Makes a certificate of this machine's loopback, or says why not.
fn certificate(dir: &Path) -> Result<(), String> {
    std::fs::write(dir.join("openssl.cnf"), CONFIGURATION).unwrap();
    let arguments = "req -x509 -config openssl.cnf -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
                     -keyout key.pem -out cert.pem -days 2 -subj /CN=localhost";
    let made = Command::new("openssl").current_dir(dir).args(arguments.split_whitespace()).output();
    let made = made.map_err(|error| format!("openssl: {error}"))?;
    let said = String::from_utf8_lossy(&made.stderr).into_owned();
    if made.status.success() { Ok(()) } else { Err(format!("openssl: {said}")) }
}

/// What is trusted is a variable of the process, so it is another one.
#[test]
fn a_link_goes_over_tls_and_only_to_whom_the_system_trusts() {
    let dir = tempfile::tempdir().unwrap();
    if let Err(reason) = certificate(dir.path()) {
        let _ = writeln!(std::io::stderr(), "SKIPPED tls: {reason}");
        return;
    }
    let another = tempfile::tempdir().unwrap();
    certificate(another.path()).unwrap();
    for (trusted, is_linked) in [(dir.path(), true), (another.path(), false)] {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "helper_that_trusts", "--nocapture"])
            .env(DIR, dir.path())
            .env("SSL_CERT_FILE", trusted.join("cert.pem"))
            .output()
            .unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert_eq!((said.contains("linked"), said.contains("refused: ")), (is_linked, !is_linked), "{said}");
        assert!(is_linked || said.to_lowercase().contains("certificate"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn helper_that_trusts() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let file = |name: &str| Path::new(&dir).join(name).display().to_string();
    let tls = format!("tls {{\n  cert_file: {:?}\n  key_file: {:?}\n}}\n", file("cert.pem"), file("key.pem"));
    let broker = Broker::start_with(&tls).await;
    let server = format!("localhost:{}", broker.server.url().rsplit_once(':').unwrap().1);
    let issuer = broker.issuer_at(&format!("tls://{server}"));
    let (host, credential) = match HostEnd::open(&issuer, execution(1), Duration::from_secs(600)).await {
        Ok(opened) => opened,
        Err(error) => return println!("refused: {error}"),
    };
    assert!(host.wants_tls());
    let guest = GuestEnd::new(&format!("tls://{server}"), credential);
    let mut guest = tokio::task::spawn_blocking(move || guest.open()).await.unwrap().unwrap();
    guest.sender.send(&ToHost::Held).unwrap();
    let (socket, _broken) = tokio::time::timeout(SOON, host.accept()).await.unwrap().unwrap();
    assert_eq!(StreamReceiver::<_, ToHost>::new(socket).receive().unwrap(), Some(ToHost::Held));
    println!("linked");
}
