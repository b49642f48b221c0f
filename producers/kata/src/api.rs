//! The messages of containerd's gRPC API that are used, with the numbers of its `.proto` files (`api/services/*/v1`, as of
//! 1.6; they are stable). Fields that are not used are left out, which protobuf allows on both sides.

use std::collections::HashMap;

use prost::Message;

/// A request with where it goes and what is answered.
pub(crate) trait Call: Message + 'static {
    const PATH: &'static str;
    type Answer: Message + Default + 'static;
}

macro_rules! calls {
    ($($request:ident => $answer:ident, $path:literal;)*) => {
        $(impl Call for $request {
            const PATH: &'static str = $path;
            type Answer = $answer;
        })*
    };
}

calls! {
    GetVersion => Version, "/containerd.services.version.v1.Version/Version";
    GetImage => GotImage, "/containerd.services.images.v1.Images/Get";
    ReadContent => Chunk, "/containerd.services.content.v1.Content/Read";
    PrepareSnapshot => Mounts, "/containerd.services.snapshots.v1.Snapshots/Prepare";
    StatSnapshot => Empty, "/containerd.services.snapshots.v1.Snapshots/Stat";
    RemoveSnapshot => Empty, "/containerd.services.snapshots.v1.Snapshots/Remove";
    CreateContainer => Empty, "/containerd.services.containers.v1.Containers/Create";
    ListContainers => Listed, "/containerd.services.containers.v1.Containers/List";
    DeleteContainer => Empty, "/containerd.services.containers.v1.Containers/Delete";
    CreateTask => Created, "/containerd.services.tasks.v1.Tasks/Create";
    StartTask => Empty, "/containerd.services.tasks.v1.Tasks/Start";
    WaitTask => Exited, "/containerd.services.tasks.v1.Tasks/Wait";
    KillTask => Empty, "/containerd.services.tasks.v1.Tasks/Kill";
    CloseIo => Empty, "/containerd.services.tasks.v1.Tasks/CloseIO";
    DeleteTask => Empty, "/containerd.services.tasks.v1.Tasks/Delete";
}

/// Nothing, or nothing that is used.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Empty {}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Any {
    #[prost(string, tag = "1")]
    pub(crate) type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) value: Vec<u8>,
}

/// It is asked for without a word.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct GetVersion {}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Version {
    #[prost(string, tag = "1")]
    pub(crate) version: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct GetImage {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct GotImage {
    #[prost(message, optional, tag = "1")]
    pub(crate) image: Option<Image>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Image {
    #[prost(message, optional, tag = "3")]
    pub(crate) target: Option<Descriptor>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Descriptor {
    #[prost(string, tag = "2")]
    pub(crate) digest: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ReadContent {
    #[prost(string, tag = "1")]
    pub(crate) digest: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Chunk {
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PrepareSnapshot {
    #[prost(string, tag = "1")]
    pub(crate) snapshotter: String,
    #[prost(string, tag = "2")]
    pub(crate) key: String,
    #[prost(string, tag = "3")]
    pub(crate) parent: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Mounts {
    #[prost(message, repeated, tag = "1")]
    pub(crate) mounts: Vec<Mount>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Mount {
    #[prost(string, tag = "1")]
    pub(crate) kind: String,
    #[prost(string, tag = "2")]
    pub(crate) source: String,
    #[prost(string, tag = "3")]
    pub(crate) target: String,
    #[prost(string, repeated, tag = "4")]
    pub(crate) options: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct StatSnapshot {
    #[prost(string, tag = "1")]
    pub(crate) snapshotter: String,
    #[prost(string, tag = "2")]
    pub(crate) key: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct RemoveSnapshot {
    #[prost(string, tag = "1")]
    pub(crate) snapshotter: String,
    #[prost(string, tag = "2")]
    pub(crate) key: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CreateContainer {
    #[prost(message, optional, tag = "1")]
    pub(crate) container: Option<Container>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Container {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(map = "string, string", tag = "2")]
    pub(crate) labels: HashMap<String, String>,
    #[prost(string, tag = "3")]
    pub(crate) image: String,
    #[prost(message, optional, tag = "4")]
    pub(crate) runtime: Option<Runtime>,
    #[prost(message, optional, tag = "5")]
    pub(crate) spec: Option<Any>,
    #[prost(string, tag = "6")]
    pub(crate) snapshotter: String,
    #[prost(string, tag = "7")]
    pub(crate) snapshot_key: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Runtime {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ListContainers {
    #[prost(string, repeated, tag = "1")]
    pub(crate) filters: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Listed {
    #[prost(message, repeated, tag = "1")]
    pub(crate) containers: Vec<Container>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct DeleteContainer {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CreateTask {
    #[prost(string, tag = "1")]
    pub(crate) container_id: String,
    #[prost(message, repeated, tag = "3")]
    pub(crate) rootfs: Vec<Mount>,
    #[prost(string, tag = "4")]
    pub(crate) stdin: String,
    #[prost(string, tag = "5")]
    pub(crate) stdout: String,
    #[prost(string, tag = "6")]
    pub(crate) stderr: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Created {
    #[prost(uint32, tag = "2")]
    pub(crate) pid: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct StartTask {
    #[prost(string, tag = "1")]
    pub(crate) container_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct WaitTask {
    #[prost(string, tag = "1")]
    pub(crate) container_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Exited {
    #[prost(uint32, tag = "1")]
    pub(crate) exit_status: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct KillTask {
    #[prost(string, tag = "1")]
    pub(crate) container_id: String,
    #[prost(uint32, tag = "3")]
    pub(crate) signal: u32,
    #[prost(bool, tag = "4")]
    pub(crate) all: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CloseIo {
    #[prost(string, tag = "1")]
    pub(crate) container_id: String,
    #[prost(bool, tag = "3")]
    pub(crate) stdin: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct DeleteTask {
    #[prost(string, tag = "1")]
    pub(crate) container_id: String,
}
