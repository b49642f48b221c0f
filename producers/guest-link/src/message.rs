//! What is said.

use glasshouse_schema::ids::{Digest, ExecutionId, NodeId};
use glasshouse_schema::lifecycle::{Attached, RedactionRules, Rusage};
use glasshouse_schema::limits::{Limit, Limits};
use serde::{Deserialize, Serialize};

use crate::codec::{LinkError, MAX_CHUNK_BYTES, MAX_CONTROL_BYTES, MAX_SPEC_BYTES};

/// Bytes as they are; in JSON as base64.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use base64::Engine as _;
        match serializer.is_human_readable() {
            true => serializer.serialize_str(&base64::engine::general_purpose::STANDARD.encode(&self.0)),
            false => serializer.serialize_bytes(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use base64::Engine as _;
        if !deserializer.is_human_readable() {
            return serde_bytes::ByteBuf::deserialize(deserializer).map(|bytes| Self(bytes.into_vec()));
        }
        let text = String::deserialize(deserializer)?;
        base64::engine::general_purpose::STANDARD.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// A standard stream of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What is to be run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The execution.
    pub execution: ExecutionId,
    /// The program and its arguments.
    pub argv: Vec<Bytes>,
    /// The whole environment.
    pub env: Vec<(Bytes, Bytes)>,
    /// The working directory.
    pub workdir: Bytes,
    /// Whether it is to be watched: the programs are loaded while the command's process is made.
    pub watch: bool,
    /// What it may use. Wall time is the host's.
    pub limits: Limits,
    /// What is masked in frames.
    pub redaction: RedactionRules,
    /// Key of the marks.
    pub redaction_key: Bytes,
    /// The host's clock when it wrote this, nanoseconds since the Unix epoch. The guest takes it for its own.
    pub unix_ns: i64,
    /// Random bytes of the host: a machine that was cloned would go on with those of the others.
    pub entropy: Bytes,
}

/// Whose frames are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The node, as frames name it.
    pub node: NodeId,
    /// The epoch of its claim.
    pub epoch: u64,
    /// Hold the command up rather than lose a fact.
    pub lossless: bool,
}

/// What a guest is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the probe.
    pub probe: String,
    /// `uname -r`.
    pub kernel: String,
    /// `uname -m`.
    pub arch: String,
    /// The kernel describes its types.
    pub btf: bool,
    /// It is the first process of its machine.
    pub is_init: bool,
    /// What of the machine could not be prepared, in words.
    pub problems: Vec<String>,
}

/// A guest's clocks at one moment, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// CLOCK_BOOTTIME.
    pub boot_ns: u64,
    /// CLOCK_REALTIME.
    pub unix_ns: i64,
}

/// How the root ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// The root's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// How.
    pub status: Status,
    /// What it used.
    pub rusage: Option<Rusage>,
}

/// The end of all of the command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// The limit that it ran into.
    pub ran_into: Option<Limit>,
    /// Why tasks of it may be left.
    pub error: Option<String>,
}

/// Where the chain of frames ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// Frames, the seal included.
    pub frames: u64,
    /// Digest of the last.
    pub head: Digest,
}

/// Why the command does not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// There is no such program.
    NotFound {
        /// As it was asked for.
        program: String,
    },
    /// It cannot be executed.
    CannotExecute {
        /// As it was asked for.
        program: String,
        /// The kernel's reason.
        reason: String,
    },
    /// Anything else.
    Failed {
        /// What was being done.
        action: String,
        /// Why it failed.
        reason: String,
    },
}

/// One direction of the link.
pub trait Message: Sized {
    /// The most bytes that a message of a kind may have; `None` if there is no such kind.
    fn max_bytes(kind: u8) -> Option<usize>;

    /// Its kind, and its bytes at the end of `out`.
    fn write(&self, out: &mut Vec<u8>) -> Result<u8, LinkError>;

    /// Reads the bytes of a kind.
    fn read(kind: u8, bytes: Vec<u8>) -> Result<Self, LinkError>;
}

/// With the names of fields: documents of the schema leave out those that are empty.
fn pack(value: &impl Serialize, out: &mut Vec<u8>) -> Result<(), LinkError> {
    rmp_serde::encode::write_named(out, value).map_err(|error| LinkError::Unwritable(error.to_string()))
}

fn unpack<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, LinkError> {
    rmp_serde::from_slice(bytes).map_err(|error| LinkError::Malformed(error.to_string()))
}

/// Makes a direction: kinds with raw bytes, with a MessagePack value, and with nothing.
macro_rules! direction {
    (
        $(#[$doc:meta])* $name:ident;
        raw { $($(#[$raw_doc:meta])* $raw:ident = $raw_kind:literal ($raw_max:expr),)* }
        packed { $($(#[$packed_doc:meta])* $packed:ident($value:ty) = $packed_kind:literal ($packed_max:expr),)* }
        empty { $($(#[$empty_doc:meta])* $empty:ident = $empty_kind:literal,)* }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(tag = "kind", content = "is", rename_all = "snake_case")]
        pub enum $name {
            $($(#[$raw_doc])* $raw(Bytes),)*
            $($(#[$packed_doc])* $packed($value),)*
            $($(#[$empty_doc])* $empty,)*
        }

        impl Message for $name {
            fn max_bytes(kind: u8) -> Option<usize> {
                match kind {
                    $($raw_kind => Some($raw_max),)*
                    $($packed_kind => Some($packed_max),)*
                    $($empty_kind => Some(0),)*
                    _ => None,
                }
            }

            fn write(&self, out: &mut Vec<u8>) -> Result<u8, LinkError> {
                match self {
                    $(Self::$raw(bytes) => {
                        out.extend_from_slice(&bytes.0);
                        Ok($raw_kind)
                    })*
                    $(Self::$packed(value) => pack(value, out).map(|()| $packed_kind),)*
                    $(Self::$empty => Ok($empty_kind),)*
                }
            }

            fn read(kind: u8, bytes: Vec<u8>) -> Result<Self, LinkError> {
                match kind {
                    $($raw_kind => Ok(Self::$raw(Bytes(bytes))),)*
                    $($packed_kind => unpack(&bytes).map(Self::$packed),)*
                    $($empty_kind => Ok(Self::$empty),)*
                    _ => Err(LinkError::UnknownKind(kind)),
                }
            }
        }
    };
}

direction! {
    /// What the host says to the guest.
    ToGuest;
    raw {
        /// More of standard input.
        Stdin = 0x40 (MAX_CHUNK_BYTES),
    }
    packed {
        /// What is to be run. Once.
        Spec(Box<Spec>) = 0x01 (MAX_SPEC_BYTES),
        /// Watch it.
        Attach(Attach) = 0x02 (MAX_CONTROL_BYTES),
        /// So much more of a stream may be sent.
        Credit((Stream, u32)) = 0x03 (MAX_CONTROL_BYTES),
        /// This signal, to the root or what it left behind.
        Signal(i32) = 0x04 (MAX_CONTROL_BYTES),
        /// End what the command left behind, or wait for it.
        Drain(bool) = 0x05 (MAX_CONTROL_BYTES),
    }
    empty {
        /// Let the command go.
        Release = 0x20,
        /// Standard input ends.
        StdinEnd = 0x21,
        /// End all of the command.
        Kill = 0x22,
        /// Seal the chain of frames.
        Seal = 0x23,
        /// Power off.
        Shutdown = 0x24,
    }
}

direction! {
    /// What the guest says to the host.
    ToHost;
    raw {
        /// More of standard output.
        Stdout = 0x40 (MAX_CHUNK_BYTES),
        /// More of standard error.
        Stderr = 0x41 (MAX_CHUNK_BYTES),
        /// One frame of profiling.
        Frame = 0x42 (glasshouse_schema::frame::MAX_FRAME_BYTES),
    }
    packed {
        /// The probe runs. Once, first.
        Hello(Hello) = 0x01 (MAX_CONTROL_BYTES),
        /// What is watched, or why nothing is.
        Attached(Result<Attached, String>) = 0x02 (MAX_CONTROL_BYTES),
        /// The command does not run.
        Failed(Failure) = 0x03 (MAX_CONTROL_BYTES),
        /// So much more of standard input may be sent.
        Credit(u32) = 0x04 (MAX_CONTROL_BYTES),
        /// A limit for which the command has to be ended.
        Exceeded(Limit) = 0x05 (MAX_CONTROL_BYTES),
        /// The root ended.
        Exit(Exit) = 0x06 (MAX_CONTROL_BYTES),
        /// Nothing of the command is left.
        Drained(Drained) = 0x07 (MAX_CONTROL_BYTES),
        /// The chain of frames is sealed, or why it is not.
        Sealed(Result<Sealed, String>) = 0x08 (MAX_CONTROL_BYTES),
        /// The guest is alive.
        Heartbeat(Clock) = 0x09 (MAX_CONTROL_BYTES),
    }
    empty {
        /// The command's process exists.
        Held = 0x20,
        /// The command runs.
        Running = 0x21,
    }
}
