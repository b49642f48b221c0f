//! What the tests share: a real server in operator mode, and a way to it that loses what it is told to.

#![allow(dead_code, unreachable_pub, reason = "not every test uses all of it")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use glasshouse_guest_nats::{Issuer, operator};
use glasshouse_nats::{NatsServer, ServerOptions};
use glasshouse_schema::ids::ExecutionId;

pub struct Broker {
    pub server: NatsServer,
    pub setup: operator::Setup,
    // Dropped last, after the server that writes there.
    pub dir: tempfile::TempDir,
}

impl Broker {
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// With more of its configuration.
    pub async fn start_with(more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let setup = operator::setup().unwrap();
        let mut options = ServerOptions::new(dir.path());
        options.more = format!("{}{more}", setup.configuration);
        Self { server: NatsServer::start(options).await.unwrap(), setup, dir }
    }

    pub fn secret(&self, name: &str) -> &str {
        &self.setup.secrets.iter().find(|(file, _)| *file == name).unwrap().1
    }

    /// Mints for the server itself, or for another way to it.
    pub fn issuer_at(&self, url: &str) -> Issuer {
        Issuer::new(url, self.secret(operator::GUESTS_KEY)).unwrap()
    }

    pub fn issuer(&self) -> Issuer {
        self.issuer_at(self.server.url())
    }

    pub fn address(&self) -> SocketAddr {
        self.server.url().strip_prefix("nats://").unwrap().parse().unwrap()
    }
}

pub fn execution(n: u8) -> ExecutionId {
    ExecutionId::from_parts(1_700_000_000_000, [n; 10])
}

/// What becomes of a message that a client publishes: its subject and payload, sent on as often as this says.
pub type Fate = Arc<Mutex<dyn FnMut(&str, &[u8]) -> usize + Send>>;

/// A way to a server on which published messages can be lost or doubled. It ends with the connections.
pub fn way(to: SocketAddr, fate: impl FnMut(&str, &[u8]) -> usize + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let fate: Fate = Arc::new(Mutex::new(fate));
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(server) = TcpStream::connect(to) else { return };
            let (mut back, mut from) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut back);
                let _ = back.shutdown(std::net::Shutdown::Both);
            });
            let fate = Arc::clone(&fate);
            std::thread::spawn(move || {
                let _ = forth(BufReader::new(client), &server, &fate);
                let _ = server.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    address
}

fn forth(mut client: BufReader<TcpStream>, mut server: &TcpStream, fate: &Fate) -> std::io::Result<()> {
    loop {
        let mut line = Vec::new();
        if client.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let words: Vec<String> =
            String::from_utf8_lossy(&line).split_whitespace().map(str::to_owned).collect();
        let mut times = 1;
        if let [verb, subject, .., length] = words.as_slice()
            && verb == "PUB"
        {
            let mut payload = vec![0; length.parse::<usize>().unwrap() + 2];
            client.read_exact(&mut payload)?;
            times = (fate.lock().unwrap())(subject, &payload[..payload.len() - 2]);
            line.extend(payload);
        }
        for _ in 0..times {
            server.write_all(&line)?;
        }
    }
}
