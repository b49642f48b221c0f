//! Puts the members of objects in order while serde_json writes them.

use std::cmp::Ordering;
use std::io::{self, Write};
use std::ops::Range;

use serde_json::ser::{CharEscape, CompactFormatter, Formatter};

/// Integers beyond this one are rounded, as doubles are.
const MAX_EXACT: u64 = 1 << 53;

/// Writes all of a document into memory, where an object's members can be sorted once it is complete. What it is given to write
/// to stays empty.
pub(super) struct Writer<'b> {
    bytes: &'b mut Vec<u8>,
    /// Those that are not complete, the innermost last.
    objects: Vec<Object>,
    /// Kept for its allocation.
    sorted: Vec<u8>,
    /// Kept for their allocations.
    spare: Vec<Vec<Member>>,
}

/// An object that is being written.
struct Object {
    begin: usize,
    members: Vec<Member>,
}

struct Member {
    begin: usize,
    /// Without its quotes.
    key: Range<usize>,
    /// With its key.
    end: usize,
}

/// Members sort by the UTF-16 code units of their keys (RFC 8785, section 3.2.3). For ASCII that is by bytes, of which those after
/// the first that differ do not matter.
fn compare(a: &[u8], b: &[u8]) -> Ordering {
    let is_plain = |byte: u8| byte.is_ascii() && byte != b'\\';
    for (of_a, of_b) in a.iter().zip(b) {
        if !is_plain(*of_a) || !is_plain(*of_b) {
            return units(a).cmp(&units(b));
        }
        if of_a != of_b {
            return of_a.cmp(of_b);
        }
    }
    a.len().cmp(&b.len())
}

fn units(key: &[u8]) -> Vec<u16> {
    let quoted = [b"\"", key, b"\""].concat();
    serde_json::from_slice::<String>(&quoted).unwrap_or_default().encode_utf16().collect()
}

impl<'b> Writer<'b> {
    pub(super) fn new(bytes: &'b mut Vec<u8>) -> Self {
        Self { bytes, objects: Vec::new(), sorted: Vec::new(), spare: Vec::new() }
    }
}

impl Writer<'_> {
    fn integer(&mut self, value: i128) -> io::Result<()> {
        match i64::try_from(value) {
            Ok(exact) if exact.unsigned_abs() <= MAX_EXACT => {
                self.bytes.extend_from_slice(itoa::Buffer::new().format(exact).as_bytes());
                Ok(())
            }
            _ => self.float(value as f64),
        }
    }

    fn float(&mut self, value: f64) -> io::Result<()> {
        self.bytes.write_all(ryu_js::Buffer::new().format(value).as_bytes())
    }

    fn sort(&mut self, begin: usize, members: &mut [Member]) -> io::Result<()> {
        let bytes = &self.bytes[..];
        let key = |member: &Member| &bytes[member.key.clone()];
        if members.is_sorted_by(|a, b| compare(key(a), key(b)).is_lt()) {
            return Ok(());
        }
        members.sort_unstable_by(|a, b| compare(key(a), key(b)));
        if members.array_windows().any(|[a, b]| key(a) == key(b)) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "two members of an object have one key"));
        }
        self.sorted.clear();
        for member in &*members {
            if !self.sorted.is_empty() {
                self.sorted.push(b',');
            }
            self.sorted.extend_from_slice(&bytes[member.begin..member.end]);
        }
        self.bytes.truncate(begin);
        self.bytes.extend_from_slice(&self.sorted);
        Ok(())
    }
}

/// Methods that write what the usual formatter writes.
macro_rules! as_usual {
    ($($method:ident($($value:ident: $of:ty)?);)+) => {$(
        fn $method<W: ?Sized + Write>(&mut self, _: &mut W $(, $value: $of)?) -> io::Result<()> {
            CompactFormatter.$method(self.bytes $(, $value)?)
        }
    )+};
}

macro_rules! integers {
    ($($method:ident $of:ty;)+) => {$(
        fn $method<W: ?Sized + Write>(&mut self, _: &mut W, value: $of) -> io::Result<()> {
            self.integer(value.into())
        }
    )+};
}

impl Formatter for Writer<'_> {
    as_usual! {
        write_null();
        write_bool(value: bool);
        begin_string();
        end_string();
        write_string_fragment(fragment: &str);
        write_char_escape(escape: CharEscape);
        begin_array();
        end_array();
        begin_array_value(first: bool);
    }

    integers! {
        write_i8 i8;
        write_i16 i16;
        write_i32 i32;
        write_i64 i64;
        write_i128 i128;
        write_u8 u8;
        write_u16 u16;
        write_u32 u32;
        write_u64 u64;
    }

    fn write_u128<W: ?Sized + Write>(&mut self, _: &mut W, value: u128) -> io::Result<()> {
        match i128::try_from(value) {
            Ok(value) => self.integer(value),
            Err(_) => self.float(value as f64),
        }
    }

    fn write_f32<W: ?Sized + Write>(&mut self, _: &mut W, value: f32) -> io::Result<()> {
        self.float(value.into())
    }

    fn write_f64<W: ?Sized + Write>(&mut self, _: &mut W, value: f64) -> io::Result<()> {
        self.float(value)
    }

    fn write_number_str<W: ?Sized + Write>(&mut self, _: &mut W, _: &str) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a number of arbitrary precision"))
    }

    fn write_raw_fragment<W: ?Sized + Write>(&mut self, _: &mut W, _: &str) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "JSON that is written already"))
    }

    fn begin_object<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.bytes.push(b'{');
        let members = self.spare.pop().unwrap_or_default();
        self.objects.push(Object { begin: self.bytes.len(), members });
        Ok(())
    }

    fn end_object<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        if let Some(Object { begin, mut members }) = self.objects.pop() {
            self.sort(begin, &mut members)?;
            members.clear();
            self.spare.push(members);
        }
        self.bytes.push(b'}');
        Ok(())
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, _: &mut W, first: bool) -> io::Result<()> {
        if !first {
            self.bytes.push(b',');
        }
        let begin = self.bytes.len();
        if let Some(object) = self.objects.last_mut() {
            object.members.push(Member { begin, key: begin + 1..begin + 1, end: begin });
        }
        Ok(())
    }

    fn end_object_key<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        let end = self.bytes.len() - 1;
        if let Some(member) = self.objects.last_mut().and_then(|object| object.members.last_mut()) {
            member.key.end = end;
        }
        Ok(())
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.bytes.push(b':');
        Ok(())
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        let end = self.bytes.len();
        if let Some(member) = self.objects.last_mut().and_then(|object| object.members.last_mut()) {
            member.end = end;
        }
        Ok(())
    }
}
