//! A consumer of receipts: joins a durable consumer, verifies each receipt's digest, prints a line, acknowledges.
//!
//! ```text
//! cargo run -p glasshouse-nats --example subscriber -- nats://127.0.0.1:4222 my-subscriber
//! ```
//!
//! Start it twice with the same name and the two share the receipts; stop it and it goes on later where it was. What it
//! cannot verify it terminates, and says so on standard error. Ctrl-C ends it.

use std::process::ExitCode;

use glasshouse_nats::{ConnectOptions, Error, ErrorKind, ReceiptConsumer, connect};
use glasshouse_schema::Receipt;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| "nats://127.0.0.1:4222".into());
    let name = arguments.next().unwrap_or_else(|| "subscriber-example".into());

    let bus = connect(ConnectOptions::new(url, &name)).await?;
    let mut receipts = ReceiptConsumer::join(&bus, &name).await?;
    loop {
        let delivery = tokio::select! {
            delivery = receipts.next() => delivery?,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        // Resolves a manifest and checks the body against the digest header. A delivery that is dropped on an error comes
        // again.
        let document = match delivery.document().await {
            Ok(document) => document,
            Err(error) if error.kind() == ErrorKind::Poison => {
                eprintln!("{error}");
                delivery.term(&error.to_string()).await?;
                continue;
            }
            Err(error) => return Err(error),
        };
        match Receipt::decode(&document.body) {
            Ok(receipt) => {
                println!(
                    "{} exit={} {:?} {} bytes sha256:{}",
                    receipt.execution_id,
                    receipt.exit_code,
                    receipt.completeness,
                    document.body.len(),
                    document.digest
                );
                delivery.ack().await?;
            }
            Err(error) => {
                eprintln!("message {}: {error}", delivery.message().stream_seq);
                delivery.term(&error.to_string()).await?;
            }
        }
    }
}
