//! A stream of bytes carried over NATS: the same at both ends.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc};

use crate::connection::Connection;
use crate::ledger::{Broken, HEADER_BYTES, Kind, Ledger, MAX_PIECE_BYTES, MAX_REASON_BYTES, WINDOW};

/// How long the other end may keep us from telling it that the link is over.
const END_TOLD_WITHIN: Duration = Duration::from_secs(1);

/// Carries both directions of `socket` until either end is done with it, or says why that is not possible.
pub(crate) async fn carry(
    connection: Connection,
    first: Option<Bytes>,
    socket: &mut UnixStream,
) -> Result<(), Broken> {
    let (reads, writes) = socket.split();
    let Connection { client, mut messages, publish, mut disturbed } = connection;
    let link = Link { client, publish, ledger: Mutex::default(), room: Notify::new() };
    // The window keeps it from being full.
    let (pieces, coming) = mpsc::channel(WINDOW as usize);
    let hear = async {
        let pieces = pieces;
        if let Some(first) = first
            && !link.hear(&first, &pieces)?
        {
            return Ok(());
        }
        while let Some(message) = messages.next().await {
            if !link.hear(&message.payload, &pieces)? {
                return Ok(());
            }
        }
        Err(Broken::Connection("the subscription ended".into()))
    };
    let both = async { tokio::try_join!(hear, link.hand_on(coming, writes)).map(drop) };
    let ended = tokio::select! {
        biased;
        reason = disturbed.wait_for(Option::is_some) => Err(Broken::Connection(reason_of(reason))),
        ended = both => ended,
        ended = link.speak(reads) => ended,
    };
    let reason = ended.as_ref().err().map(ToString::to_string).unwrap_or_default();
    // As far as it can be told.
    let _ = tokio::time::timeout(END_TOLD_WITHIN, link.end(&reason)).await;
    ended
}

pub(crate) fn reason_of<E>(told: Result<tokio::sync::watch::Ref<'_, Option<String>>, E>) -> String {
    told.ok().and_then(|reason| reason.clone()).unwrap_or_else(|| "it was closed".to_owned())
}

struct Link {
    client: async_nats::Client,
    publish: async_nats::Subject,
    ledger: Mutex<Ledger>,
    /// Something may be sent again.
    room: Notify,
}

impl Link {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a message; `false` if it is the last.
    fn hear(&self, message: &Bytes, pieces: &mpsc::Sender<Bytes>) -> Result<bool, Broken> {
        let kind = self.ledger().hear(message)?;
        self.room.notify_one();
        if kind == Kind::Piece {
            pieces.try_send(message.slice(HEADER_BYTES..)).map_err(|_| Broken::Overrun)?;
        }
        Ok(kind != Kind::End)
    }

    /// Hands pieces on to whoever reads the stream, as fast as they are read.
    async fn hand_on(&self, mut coming: mpsc::Receiver<Bytes>, mut to: WriteHalf<'_>) -> Result<(), Broken> {
        while let Some(piece) = coming.recv().await {
            // Our own end is gone: `speak` hears that too.
            if to.write_all(&piece).await.is_err() {
                return Ok(());
            }
            let tell = {
                let mut ledger = self.ledger();
                ledger.take().then(|| ledger.send(Kind::Taken))
            };
            if let Some(header) = tell {
                self.publish(Bytes::copy_from_slice(&header.write())).await?;
            }
        }
        Ok(())
    }

    /// Sends what is written into the stream, as fast as the other end takes it.
    async fn speak(&self, mut from: ReadHalf<'_>) -> Result<(), Broken> {
        let mut buffer = BytesMut::new();
        loop {
            buffer.resize(HEADER_BYTES + MAX_PIECE_BYTES, 0);
            let read = match from.read(&mut buffer[HEADER_BYTES..]).await {
                // A stream that is reset is as much at its end.
                Ok(0) | Err(_) => return Ok(()),
                Ok(read) => read,
            };
            let header = loop {
                let room = self.room.notified();
                {
                    let mut ledger = self.ledger();
                    if ledger.has_room() {
                        break ledger.send(Kind::Piece);
                    }
                }
                room.await;
            };
            buffer[..HEADER_BYTES].copy_from_slice(&header.write());
            self.publish(buffer.split_to(HEADER_BYTES + read).freeze()).await?;
        }
    }

    async fn end(&self, reason: &str) {
        let header = self.ledger().send(Kind::End).write();
        let reason = reason.as_bytes();
        let message = [&header, &reason[..reason.len().min(MAX_REASON_BYTES)]].concat();
        if self.publish(message.into()).await.is_ok() {
            let _ = self.client.flush().await;
        }
    }

    async fn publish(&self, message: Bytes) -> Result<(), Broken> {
        let sent = self.client.publish(self.publish.clone(), message).await;
        sent.map_err(|error| Broken::Connection(error.to_string()))
    }
}
