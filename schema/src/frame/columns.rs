//! Columns of numbers and byte strings: how the body of a frame is packed.
//!
//! A number is LEB128: seven bits a byte, the lowest first. A column begins with its form: one number for all (0), a number
//! each (1), or runs of a number and how often it comes (2), whichever is shortest. It does not say how many it holds;
//! what holds it does. Byte strings are their lengths, always a number each, then their bytes one behind the other. So no list
//! has more entries than it has bytes, and none makes a reader allocate much more than it sent.

use crate::event::{ExecFlags, FileChange, Operation, PathFlags, SocketOperation};

use super::DecodeError;

const SAME: u8 = 0;
const EACH: u8 = 1;
const RUNS: u8 = 2;

/// A value that is a number in a column.
pub(super) trait Field: Copy {
    fn number(self) -> u64;

    /// `None` for a number that is no such value.
    fn of(number: u64) -> Option<Self>;
}

macro_rules! unsigned {
    ($($integer:ty)+) => {$(
        impl Field for $integer {
            fn number(self) -> u64 {
                u64::from(self)
            }

            fn of(number: u64) -> Option<Self> {
                Self::try_from(number).ok()
            }
        }
    )+};
}
unsigned! { u8 u16 u32 u64 }

impl Field for bool {
    fn number(self) -> u64 {
        u64::from(self)
    }

    fn of(number: u64) -> Option<Self> {
        (number < 2).then_some(number == 1)
    }
}

/// Small numbers of both signs are small: 0, -1, 1, -2 and so on.
impl Field for i32 {
    fn number(self) -> u64 {
        zigzag(i64::from(self))
    }

    fn of(number: u64) -> Option<Self> {
        Self::try_from(unzigzag(number)).ok()
    }
}

/// 0 for none, else one more than the value.
impl<T: Field> Field for Option<T> {
    fn number(self) -> u64 {
        self.map_or(0, |value| value.number().saturating_add(1))
    }

    fn of(number: u64) -> Option<Self> {
        match number.checked_sub(1) {
            None => Some(None),
            Some(value) => T::of(value).map(Some),
        }
    }
}

macro_rules! numbered {
    ($($name:ty)+) => {$(
        impl Field for $name {
            fn number(self) -> u64 {
                u64::from(u8::from(self))
            }

            fn of(number: u64) -> Option<Self> {
                u8::try_from(number).ok()?.try_into().ok()
            }
        }
    )+};
}
numbered! { FileChange SocketOperation Operation }

macro_rules! bits {
    ($($name:ident)+) => {$(
        impl Field for $name {
            fn number(self) -> u64 {
                u64::from(self.0)
            }

            fn of(number: u64) -> Option<Self> {
                number.try_into().ok().map(Self)
            }
        }
    )+};
}
bits! { ExecFlags PathFlags }

const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

const fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

/// How many bytes a number takes.
const fn size(number: u64) -> usize {
    (70 - (number | 1).leading_zeros() as usize) / 7
}

/// Packs columns.
#[derive(Debug, Default)]
pub(super) struct Writer {
    pub(super) bytes: Vec<u8>,
}

impl Writer {
    pub(super) fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    /// A column in its shortest form; nothing, if there are no values.
    pub(super) fn column(&mut self, values: impl Iterator<Item = u64> + Clone) {
        let (mut each, mut in_runs, mut runs) = (0, 0, 0);
        each_run(values.clone(), |number, times| {
            each += size(number) * times as usize;
            in_runs += size(number) + size(times);
            runs += 1;
        });
        let Some(first) = values.clone().next() else { return };
        if runs == 1 {
            self.bytes.push(SAME);
            self.number(first);
        } else if in_runs < each {
            self.bytes.push(RUNS);
            each_run(values, |number, times| {
                self.number(number);
                self.number(times);
            });
        } else {
            self.bytes.push(EACH);
            values.for_each(|number| self.number(number));
        }
    }

    /// Numbers by how far each is from the one before.
    pub(super) fn steps(&mut self, values: impl Iterator<Item = u64>) {
        let mut before = 0u64;
        for number in values {
            self.number(zigzag(number.wrapping_sub(before) as i64));
            before = number;
        }
    }

    pub(super) fn strings<'s>(&mut self, strings: impl Iterator<Item = &'s [u8]> + Clone) {
        strings.clone().for_each(|string| self.number(string.len() as u64));
        strings.for_each(|string| self.bytes.extend_from_slice(string));
    }
}

fn each_run(values: impl Iterator<Item = u64>, mut run: impl FnMut(u64, u64)) {
    let mut last = None;
    for number in values {
        match &mut last {
            Some((of, times)) if *of == number => *times += 1,
            _ => {
                if let Some((of, times)) = last.replace((number, 1)) {
                    run(of, times);
                }
            }
        }
    }
    if let Some((of, times)) = last {
        run(of, times);
    }
}

const CUT: DecodeError = DecodeError::MalformedBody("it ends inside of a list");
const OUT_OF_RANGE: DecodeError = DecodeError::MalformedBody("a number is too large for what it stands for");

/// Reads what [`Writer`] packed.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    pub(super) bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    #[inline]
    pub(super) fn number(&mut self) -> Result<u64, DecodeError> {
        match *self.bytes {
            [first, ref rest @ ..] if first < 0x80 => {
                self.bytes = rest;
                Ok(u64::from(first))
            }
            [first, second, ref rest @ ..] if second < 0x80 => {
                self.bytes = rest;
                Ok(u64::from(first & 0x7f) | u64::from(second) << 7)
            }
            [first, second, third, ref rest @ ..] if third < 0x80 => {
                self.bytes = rest;
                Ok(u64::from(first & 0x7f) | u64::from(second & 0x7f) << 7 | u64::from(third) << 14)
            }
            _ => self.long_number(),
        }
    }

    fn long_number(&mut self) -> Result<u64, DecodeError> {
        let mut number = 0;
        for (at, byte) in self.bytes.iter().enumerate().take(10) {
            let bits = u64::from(byte & 0x7f);
            if at == 9 && bits > 1 {
                return Err(OUT_OF_RANGE);
            }
            number |= bits << (7 * at);
            if byte & 0x80 == 0 {
                self.bytes = &self.bytes[at + 1..];
                return Ok(number);
            }
        }
        Err(if self.bytes.len() < 10 { CUT } else { OUT_OF_RANGE })
    }

    /// How many of something follow, each of which takes a byte at least.
    pub(super) fn count(&mut self) -> Result<usize, DecodeError> {
        let count = self.number()?;
        usize::try_from(count).ok().filter(|count| *count <= self.bytes.len()).ok_or(CUT)
    }

    pub(super) fn take(&mut self, bytes: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.bytes.split_at_checked(bytes).ok_or(CUT)?;
        self.bytes = rest;
        Ok(taken)
    }

    /// Hands each entry of a list its number; `set` says whether it takes it.
    #[inline]
    pub(super) fn column<T>(
        &mut self,
        list: &mut [T],
        set: impl Fn(&mut T, u64) -> bool,
    ) -> Result<(), DecodeError> {
        if list.is_empty() {
            return Ok(());
        }
        let mut all_taken = true;
        match self.take(1)? {
            [SAME] => {
                let number = self.number()?;
                list.iter_mut().for_each(|entry| all_taken &= set(entry, number));
            }
            [EACH] => {
                for entry in list {
                    all_taken &= set(entry, self.number()?);
                }
            }
            [RUNS] => {
                let mut rest = list;
                while !rest.is_empty() {
                    let (number, times) = (self.number()?, self.number()?);
                    let times = usize::try_from(times).ok().filter(|times| (1..=rest.len()).contains(times));
                    let wrong = DecodeError::MalformedBody("a run is longer than its list");
                    let (run, after) = rest.split_at_mut(times.ok_or(wrong)?);
                    run.iter_mut().for_each(|entry| all_taken &= set(entry, number));
                    rest = after;
                }
            }
            _ => return Err(DecodeError::MalformedBody("a column has an unknown form")),
        }
        all_taken.then_some(()).ok_or(OUT_OF_RANGE)
    }

    #[inline]
    pub(super) fn steps<T>(
        &mut self,
        list: &mut [T],
        set: impl Fn(&mut T, u64) -> bool,
    ) -> Result<(), DecodeError> {
        let (mut before, mut all_taken) = (0u64, true);
        for entry in list {
            before = before.wrapping_add(unzigzag(self.number()?) as u64);
            all_taken &= set(entry, before);
        }
        all_taken.then_some(()).ok_or(OUT_OF_RANGE)
    }

    /// As many byte strings.
    pub(super) fn strings(&mut self, count: usize) -> Result<Strings<'a>, DecodeError> {
        if count > self.bytes.len() {
            return Err(CUT);
        }
        let lengths = Self { bytes: self.bytes };
        let mut all = 0usize;
        for _ in 0..count {
            all = all.saturating_add(usize::try_from(self.number()?).unwrap_or(usize::MAX));
        }
        Ok(Strings { count, lengths, bytes: self.take(all)? })
    }
}

/// Byte strings of which it is known that they are there.
#[derive(Debug)]
pub(super) struct Strings<'a> {
    count: usize,
    lengths: Reader<'a>,
    bytes: &'a [u8],
}

impl Strings<'_> {
    /// How many bytes those have that are still to come.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        self.count = self.count.checked_sub(1)?;
        let length = usize::try_from(self.lengths.number().ok()?).ok()?;
        let (string, rest) = self.bytes.split_at_checked(length)?;
        self.bytes = rest;
        Some(string)
    }
}
