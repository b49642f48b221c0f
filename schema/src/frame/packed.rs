//! The body of a frame as columns, version 3: base time, processes, paths, then a list per kind of event.
//!
//! A list is how many entries it has, then a column per field; lists stand in the order of `each_list!`. Times and indexes of
//! paths are told by their distance from the entry before, which is small: a batch tells of one file after the other, in the
//! order of time.
//!
//! A path names an earlier one whose beginning it shares, the nearest of its directory or else of the first directory above
//! that was seen: how far back that is (0 for none), how many bytes are shared, and the rest. What paths take once unpacked is
//! bounded, because a few bytes can name a long beginning.

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use serde_bytes::Bytes;

use super::columns::{Field, Reader, Writer};
use super::paths::Paths;
use super::{
    Body, Change, Credentials, DecodeError, Delete, Dns, EncodeError, Exec, Exit, Fork, Io, MAX_FRAME_BYTES,
    Open, Operation, Rename, Socket, Traffic, each_list,
};
use crate::event::PathFlags;
use crate::ids::ProcessKey;

/// Most events that a frame holds: more than the writer puts into one.
const MAX_EVENTS: usize = 1 << 16;

const TOO_MANY: &str = "it has more events than a frame holds";
const TOO_LONG: &str = "its paths are longer than a frame's may be";

/// Entries of one kind as columns.
trait Packed<'a>: Sized {
    fn pack(list: &[Self], out: &mut Writer);

    fn unpack(count: usize, input: &mut Reader<'a>) -> Result<Vec<Self>, DecodeError>;
}

/// [`Packed`] by the columns of a kind, in their order. `steps` and `column` hold numbers, `string` a byte string, `strings` a
/// list of them. The first is of `steps`, so that no entry takes less than a byte.
macro_rules! packed {
    ($($entry:ty { $($form:ident $($field:ident).+,)+ })+) => {$(
        impl<'a> Packed<'a> for $entry {
            fn pack(list: &[Self], out: &mut Writer) {
                $(packed!(pack $form list, out, $($field).+);)+
            }

            fn unpack(count: usize, input: &mut Reader<'a>) -> Result<Vec<Self>, DecodeError> {
                let mut list = vec![Self::default(); count];
                $(packed!(unpack $form list, input, $($field).+);)+
                Ok(list)
            }
        }
    )+};
    (pack string $list:ident, $out:ident, $($field:ident).+) => {
        $out.strings($list.iter().map(|entry| entry.$($field).+))
    };
    (pack strings $list:ident, $out:ident, $($field:ident).+) => {
        $out.column($list.iter().map(|entry| entry.$($field).+.len() as u64));
        $out.strings($list.iter().flat_map(|entry| &entry.$($field).+).map(|string| &string[..]))
    };
    (pack $form:ident $list:ident, $out:ident, $($field:ident).+) => {
        $out.$form($list.iter().map(|entry| Field::number(entry.$($field).+)))
    };
    (unpack string $list:ident, $input:ident, $($field:ident).+) => {
        let strings = $input.strings($list.len())?;
        $list.iter_mut().zip(strings).for_each(|(entry, string)| entry.$($field).+ = string)
    };
    (unpack strings $list:ident, $input:ident, $($field:ident).+) => {
        let mut counts = vec![0u64; $list.len()];
        $input.column(&mut counts, |count, number| {
            *count = number;
            true
        })?;
        let all = counts.iter().fold(0u64, |all, count| all.saturating_add(*count));
        let mut strings = $input.strings(usize::try_from(all).unwrap_or(usize::MAX))?.map(Bytes::new);
        $list.iter_mut().zip(counts).for_each(|(entry, count)| {
            entry.$($field).+ = strings.by_ref().take(count as usize).collect();
        })
    };
    (unpack $form:ident $list:ident, $input:ident, $($field:ident).+) => {
        $input.$form(&mut $list, |entry, number| {
            Field::of(number).map(|value| entry.$($field).+ = value).is_some()
        })?
    };
}

packed! {
    ProcessKey { steps tgid, steps start_boot_ns, }
    Fork { steps after_ns, column process, column child, }
    Exec<'a> {
        steps after_ns, column process, column ppid, column exe, column cwd, strings argv, column argv_truncated,
        column uid, column gid, strings env, column env_truncated, column flags,
    }
    Exit {
        steps after_ns, column process, column code, column signal, column core_dumped, column usage.user_ns,
        column usage.system_ns, column usage.max_rss_kib, column usage.minor_faults, column usage.major_faults,
    }
    Open {
        steps after_ns, column process, steps path, column flags, column result, column count, column created,
    }
    Delete { steps after_ns, column process, steps path, column directory, column result, column count, }
    Rename {
        steps after_ns, column process, steps from, steps to, column result, column exchange, column count,
    }
    Socket<'a> {
        steps after_ns, column process, string address, column port, column protocol, column result,
        column operation, column count,
    }
    Credentials {
        steps after_ns, column process, column uid, column euid, column gid, column egid, column capabilities,
        column gained,
    }
    Change {
        steps after_ns, column process, column change, steps path, steps other, column value, column result,
        column count,
    }
    Io {
        steps after_ns, column process, steps path, column reads, column writes, column read_bytes,
        column written_bytes,
    }
    Traffic<'a> {
        steps after_ns, column process, string address, column port, column protocol, column sends,
        column receives, column sent_bytes, column received_bytes,
    }
    Dns<'a> {
        steps after_ns, column process, string server, column port, string name, column query_type,
        strings answers, column response_code, column truncated, column count,
    }
    Operation {
        steps after_ns, column process, column operation, column value, column target_tgid, column result,
        column count,
    }
}

fn pack_list<'a, T: Packed<'a>>(list: &[T], out: &mut Writer) {
    out.number(list.len() as u64);
    T::pack(list, out);
}

fn unpack_list<'a, T: Packed<'a>>(room: &mut usize, input: &mut Reader<'a>) -> Result<Vec<T>, DecodeError> {
    // A body of before there was such a list ends here.
    let count = if input.bytes.is_empty() { 0 } else { input.count()? };
    *room = room.checked_sub(count).ok_or(DecodeError::MalformedBody(TOO_MANY))?;
    T::unpack(count, input)
}

/// Writes a body as columns.
pub(super) fn pack(body: &Body<'_>) -> Result<Vec<u8>, EncodeError> {
    let mut events = body.processes.len();
    each_list!([&] body, |_class, list| events += list.len());
    if events > MAX_EVENTS {
        return Err(EncodeError::Body(TOO_MANY));
    }
    if body.paths.bytes() > MAX_FRAME_BYTES {
        return Err(EncodeError::Body(TOO_LONG));
    }
    let mut out = Writer::default();
    out.number(body.base_boot_ns);
    pack_list(&body.processes, &mut out);
    pack_paths(&body.paths, &mut out);
    each_list!([&] body, |_class, list| pack_list(list, &mut out));
    Ok(out.bytes)
}

/// Reads a body; its indexes are not checked.
pub(super) fn unpack(bytes: &[u8]) -> Result<Body<'_>, DecodeError> {
    let (mut input, mut room) = (Reader { bytes }, MAX_EVENTS);
    let mut body = Body { base_boot_ns: input.number()?, ..Body::default() };
    body.processes = unpack_list(&mut room, &mut input)?;
    body.paths = unpack_paths(&mut input)?;
    each_list!([&mut] body, |_class, list| *list = unpack_list(&mut room, &mut input)?);
    match input.bytes {
        [] => Ok(body),
        _ => Err(DecodeError::MalformedBody("something follows its last list")),
    }
}

/// How a path is told.
#[derive(Clone, Copy)]
struct Told {
    back: usize,
    shared: usize,
}

fn pack_paths(paths: &Paths, out: &mut Writer) {
    out.number(paths.len() as u64);
    // Which path of a directory, or of one below it, was the last.
    let mut last_below: HashMap<&[u8], u32, FixedState> =
        HashMap::with_capacity_and_hasher(paths.len() / 4, FixedState::default());
    let told: Vec<Told> = (0..paths.len() as u32)
        .map(|index| {
            let path = paths.at(index).bytes;
            let mut directory = parent(path);
            let mut known = None;
            let mut is_own = true;
            while let Some(name) = directory {
                known = last_below.get(name).copied();
                if known.is_none() || is_own {
                    last_below.insert(name, index);
                }
                if known.is_some() {
                    break;
                }
                (directory, is_own) = (parent(name), false);
            }
            let shared = known.map_or(0, |base| common_prefix(path, paths.at(base).bytes));
            match known {
                Some(base) if shared > 0 => Told { back: (index - base) as usize, shared },
                _ => Told { back: 0, shared: 0 },
            }
        })
        .collect();
    out.column(told.iter().map(|told| told.back as u64));
    out.column(told.iter().map(|told| told.shared as u64));
    out.column(paths.iter().map(|path| path.flags.number()));
    out.strings(paths.iter().zip(&told).map(|(path, told)| &path.bytes[told.shared..]));
}

fn unpack_paths(input: &mut Reader<'_>) -> Result<Paths, DecodeError> {
    let count = input.count()?;
    let mut told = vec![(Told { back: 0, shared: 0 }, PathFlags::default()); count];
    let set = |to: &mut usize, number: u64| usize::try_from(number).map(|number| *to = number).is_ok();
    input.column(&mut told, |(told, _), number| set(&mut told.back, number))?;
    input.column(&mut told, |(told, _), number| set(&mut told.shared, number))?;
    input.column(&mut told, |(_, flags), number| Field::of(number).map(|known| *flags = known).is_some())?;
    let rests = input.strings(count)?;
    let bytes = told.iter().fold(rests.bytes(), |bytes, (told, _)| bytes.saturating_add(told.shared));
    if bytes > MAX_FRAME_BYTES {
        return Err(DecodeError::MalformedBody(TOO_LONG));
    }
    let mut paths = Paths::with_room(count, bytes);
    for ((Told { back, shared }, flags), rest) in told.into_iter().zip(rests) {
        let shares = paths.push_sharing(back, shared, rest, flags);
        shares.ok_or(DecodeError::MalformedBody("a path shares what no earlier one has"))?;
    }
    Ok(paths)
}

fn parent(path: &[u8]) -> Option<&[u8]> {
    path.iter().rposition(|byte| *byte == b'/').map(|slash| &path[..slash]).filter(|name| !name.is_empty())
}

fn common_prefix(one: &[u8], other: &[u8]) -> usize {
    let (ones, others) = (one.as_chunks::<8>().0, other.as_chunks::<8>().0);
    let same = 8 * ones.iter().zip(others).take_while(|(one, other)| one == other).count();
    same + one[same..].iter().zip(&other[same..]).take_while(|(one, other)| one == other).count()
}
