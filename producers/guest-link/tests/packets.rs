//! Every message comes back from its packet as it was, in whatever pieces; and what is no packet, or a wrong one, is an error
//! that costs nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use glasshouse_guest_link::codec::{Decoder, HEADER_BYTES, LinkError, MAX_CHUNK_BYTES, encode};
use glasshouse_guest_link::message::{Bytes, *};
use glasshouse_guest_link::{Receiver, StreamReceiver};
use glasshouse_schema::ids::{Digest, ExecutionId, NodeId, Vantage};
use glasshouse_schema::lifecycle::{Attached, RedactionRules, Rusage};
use glasshouse_schema::limits::{Limit, Limits};
use proptest::prelude::*;

fn bytes(most: usize) -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..most).prop_map(Bytes)
}

fn spec() -> impl Strategy<Value = Spec> {
    (
        prop::collection::vec(bytes(20), 1..5),
        prop::collection::vec((bytes(9), bytes(9)), 0..4),
        bytes(30),
        any::<(bool, i64, u64, Option<u32>)>(),
    )
        .prop_map(|(argv, env, workdir, (watch, unix_ns, ms, pids))| Spec {
            execution: ExecutionId::from_parts(ms >> 16, [7; 10]),
            argv,
            env,
            workdir,
            watch,
            limits: Limits { pids: pids.map(|pids| u64::from(pids) + 1), ..Limits::default() },
            redaction: RedactionRules { path_prefixes: vec!["/a".into()], tokens: watch },
            redaction_key: Bytes(vec![1; 32]),
            unix_ns,
            entropy: Bytes(unix_ns.to_le_bytes().to_vec()),
        })
}

fn to_guest() -> impl Strategy<Value = ToGuest> {
    let stream = prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr)];
    prop_oneof![
        spec().prop_map(|spec| ToGuest::Spec(Box::new(spec))),
        any::<(u64, bool)>().prop_map(|(epoch, lossless)| {
            ToGuest::Attach(Attach { node: NodeId::new("n").unwrap(), epoch, lossless })
        }),
        (stream, any::<u32>()).prop_map(ToGuest::Credit),
        bytes(3000).prop_map(ToGuest::Stdin),
        any::<i32>().prop_map(ToGuest::Signal),
        any::<bool>().prop_map(ToGuest::Drain),
        prop_oneof![
            Just(ToGuest::Release),
            Just(ToGuest::StdinEnd),
            Just(ToGuest::Kill),
            Just(ToGuest::Seal),
            Just(ToGuest::Shutdown)
        ],
    ]
}

fn to_host() -> impl Strategy<Value = ToHost> {
    let attached = any::<Result<String, String>>().prop_map(|attached| {
        ToHost::Attached(attached.map(|hook| Attached {
            vantage: Vantage::Guest,
            controller: "ebpf".into(),
            hooks: vec![hook],
            blind_spots: Vec::new(),
        }))
    });
    prop_oneof![
        any::<(String, bool, bool)>().prop_map(|(kernel, btf, is_init)| {
            ToHost::Hello(Hello {
                probe: "0".into(),
                kernel,
                arch: "x86_64".into(),
                btf,
                is_init,
                problems: Vec::new(),
            })
        }),
        attached,
        any::<(String, String)>()
            .prop_map(|(program, reason)| ToHost::Failed(Failure::CannotExecute { program, reason })),
        bytes(3000).prop_map(ToHost::Stdout),
        bytes(3000).prop_map(ToHost::Stderr),
        bytes(3000).prop_map(ToHost::Frame),
        any::<u32>().prop_map(ToHost::Credit),
        any::<(i32, Option<(u64, u64)>)>().prop_map(|(code, rusage)| {
            let rusage = rusage.map(|(cpu_time_ms, max_rss_kb)| Rusage { cpu_time_ms, max_rss_kb });
            ToHost::Exit(Exit { status: Status::Code(code), rusage })
        }),
        any::<Option<String>>()
            .prop_map(|error| ToHost::Drained(Drained { ran_into: Some(Limit::Cpu), error })),
        any::<Result<(u64, [u8; 32]), String>>().prop_map(|sealed| {
            ToHost::Sealed(sealed.map(|(frames, head)| Sealed { frames, head: Digest::from_bytes(head) }))
        }),
        any::<(u64, i64)>().prop_map(|(boot_ns, unix_ns)| ToHost::Heartbeat(Clock { boot_ns, unix_ns })),
        prop_oneof![Just(ToHost::Held), Just(ToHost::Running), Just(ToHost::Exceeded(Limit::Cpu))],
    ]
}

/// Reads all of `input`, handed over in pieces of these lengths in turn.
fn read<M: Message>(input: &[u8], pieces: &[usize]) -> Result<Vec<M>, LinkError> {
    let (mut decoder, mut messages, mut rest) = (Decoder::default(), Vec::new(), input);
    let mut lengths = pieces.iter().cycle();
    while !rest.is_empty() {
        let (mut piece, after) = rest.split_at(rest.len().min(*lengths.next().unwrap()));
        while let Some(message) = decoder.take(&mut piece)? {
            messages.push(message);
        }
        rest = after;
    }
    assert!(decoder.is_at_boundary());
    Ok(messages)
}

fn comes_back<M: Message + PartialEq + std::fmt::Debug>(messages: &[M], pieces: &[usize]) {
    let mut sent = Vec::new();
    messages.iter().for_each(|message| encode(message, &mut sent).unwrap());
    assert_eq!(read::<M>(&sent, pieces).unwrap(), messages);
}

proptest! {
    #[test]
    fn messages_come_back_in_whatever_pieces(
        guest in prop::collection::vec(to_guest(), 1..6),
        host in prop::collection::vec(to_host(), 1..6),
        pieces in prop::collection::vec(1usize..100, 1..4),
    ) {
        comes_back(&guest, &pieces);
        comes_back(&host, &pieces);
    }

    #[test]
    fn messages_come_back_from_json(guest in to_guest(), host in to_host()) {
        prop_assert_eq!(serde_json_of(&guest), guest);
        prop_assert_eq!(serde_json_of(&host), host);
    }

    #[test]
    fn one_altered_byte_is_noticed(message in to_host(), at in any::<prop::sample::Index>(), by in 1u8..) {
        let mut sent = Vec::new();
        encode(&message, &mut sent).unwrap();
        let at = at.index(sent.len());
        sent[at] ^= by;
        let mut input = sent.as_slice();
        // Another length may make it wait for more.
        let read = Decoder::<ToHost>::default().take(&mut input);
        prop_assert!(!matches!(read, Ok(Some(_))), "{:?}", read);
    }

    #[test]
    fn any_bytes_are_read_or_refused(input in prop::collection::vec(any::<u8>(), 0..200), head in any::<bool>()) {
        let mut bytes = if head { b"GL\x01".to_vec() } else { Vec::new() };
        bytes.extend(input);
        let mut receiver = StreamReceiver::<_, ToHost>::new(bytes.as_slice());
        while let Ok(Some(_)) = receiver.receive() {}
    }
}

fn serde_json_of<M: serde::Serialize + serde::de::DeserializeOwned>(message: &M) -> M {
    serde_json::from_slice(&serde_json::to_vec(message).unwrap()).unwrap()
}

#[test]
fn a_length_is_refused_before_anything_is_kept() {
    for (kind, length) in [(0x42, u32::MAX), (0x40, MAX_CHUNK_BYTES as u32 + 1), (0x20, 1)] {
        let mut header = b"GL\x01".to_vec();
        header.push(kind);
        header.extend(length.to_le_bytes());
        header.extend([0; 4]);
        assert_eq!(header.len(), HEADER_BYTES);
        let error = Decoder::<ToHost>::default().take(&mut header.as_slice()).unwrap_err();
        assert!(matches!(error, LinkError::TooLarge { .. }), "{error}");
    }
}

#[test]
fn another_version_is_told_apart_from_garbage() {
    let of = |head: &[u8]| {
        Decoder::<ToHost>::default().take(&mut [head, &[0; 12]].concat().as_slice()).unwrap_err()
    };
    assert!(matches!(of(b"GL\x02"), LinkError::OtherVersion(2)));
    assert!(matches!(of(b"HTTP"), LinkError::NoPacket(_)));
    assert!(matches!(of(b"GL\x01\xff"), LinkError::UnknownKind(0xff)));
}

#[test]
fn what_does_not_fit_is_not_sent() {
    let mut sent = vec![1];
    let error = encode(&ToHost::Stdout(Bytes(vec![0; MAX_CHUNK_BYTES + 1])), &mut sent).unwrap_err();
    assert!(matches!(error, LinkError::TooLarge { .. }), "{error}");
    assert_eq!(sent, [1]);
}

#[test]
fn an_end_within_a_packet_is_no_end() {
    let mut sent = Vec::new();
    encode(&ToHost::Stdout(Bytes(vec![0; 10])), &mut sent).unwrap();
    let cut = &sent[..sent.len() - 1];
    assert!(matches!(StreamReceiver::<_, ToHost>::new(cut).receive(), Err(LinkError::Cut)));
    let mut whole = StreamReceiver::<_, ToHost>::new(sent.as_slice());
    assert!(whole.receive().unwrap().is_some());
    assert!(whole.receive().unwrap().is_none());
}
