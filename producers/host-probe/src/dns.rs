//! DNS messages (RFC 1035): the name that is asked for, and the addresses in the answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use simple_dns::rdata::RData;
use simple_dns::{Name, Packet, QTYPE};

/// Addresses of one answer that are kept.
const MAX_ANSWERS: usize = 64;

/// What a message says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    /// In presentation form, lower case, without the trailing dot.
    pub(crate) name: Vec<u8>,
    pub(crate) query_type: u16,
    pub(crate) answers: Vec<IpAddr>,
    pub(crate) response_code: u8,
}

/// Reads a message; `None` for what is none, or asks nothing. Of one that was cut, what is there.
pub(crate) fn parse(bytes: &[u8]) -> Option<Message> {
    parse_whole(bytes).or_else(|| parse_beginning(bytes))
}

/// The question, and the answers that are whole.
fn parse_beginning(bytes: &[u8]) -> Option<Message> {
    let mut at = after_name(bytes, 12)? + 4;
    let mut question = bytes.get(..at)?.to_vec();
    if question[4..6] != [0, 1] {
        return None;
    }
    question[6..12].fill(0);
    let mut message = parse_whole(&question)?;
    let answers = u16::from_be_bytes([bytes[6], bytes[7]]);
    for _ in 0..answers {
        let Some(fixed) = after_name(bytes, at) else { break };
        let Some([of, of_low, _, _, _, _, _, _, length, length_low]) =
            bytes.get(fixed..fixed + 10).and_then(|fixed| <[u8; 10]>::try_from(fixed).ok())
        else {
            break;
        };
        at = fixed + 10 + usize::from(u16::from_be_bytes([length, length_low]));
        let Some(data) = bytes.get(fixed + 10..at) else { break };
        let address = match (u16::from_be_bytes([of, of_low]), data.len()) {
            (1, 4) => <[u8; 4]>::try_from(data).ok().map(IpAddr::from),
            (28, 16) => <[u8; 16]>::try_from(data).ok().map(IpAddr::from),
            _ => None,
        };
        message.answers.extend(address.filter(|_| message.answers.len() < MAX_ANSWERS));
    }
    Some(message)
}

/// Where the name that begins there ends: with the root, or with a pointer.
fn after_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            length @ 1..64 => at += 1 + usize::from(length),
            192.. => return Some(at + 2),
            _ => return None,
        }
    }
}

fn parse_whole(bytes: &[u8]) -> Option<Message> {
    let packet = Packet::parse(bytes).ok()?;
    let question = packet.questions.first()?;
    let answers = packet.answers.iter().filter_map(|record| match &record.rdata {
        RData::A(of) => Some(IpAddr::V4(Ipv4Addr::from_bits(of.address))),
        RData::AAAA(of) => Some(IpAddr::V6(Ipv6Addr::from_bits(of.address))),
        _ => None,
    });
    Some(Message {
        name: presentation(&question.qname),
        query_type: match question.qtype {
            QTYPE::TYPE(of) => of.into(),
            of => of.into(),
        },
        answers: answers.take(MAX_ANSWERS).collect(),
        response_code: packet.rcode() as u8,
    })
}

/// RFC 4343: names differ by more than case, and resolvers play with it.
fn presentation(name: &Name<'_>) -> Vec<u8> {
    name.to_string().to_ascii_lowercase().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `dig +qr example.com A`: header, question; and its answer with one address.
    const QUESTION: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07ExAmple\x03com\0\0\x01\0\x01";
    const ANSWER: &[u8] = b"\x12\x34\x81\x80\0\x01\0\x01\0\0\0\0\x07example\x03com\0\0\x01\0\x01\
        \xc0\x0c\0\x01\0\x01\0\0\x0e\x10\0\x04\x5d\xb8\xd8\x22";

    #[test]
    fn questions_and_answers_are_read() {
        let question = parse(QUESTION).unwrap();
        assert_eq!((question.name.as_slice(), question.query_type), (b"example.com".as_slice(), 1));
        assert!(question.answers.is_empty());
        let answer = parse(ANSWER).unwrap();
        assert_eq!(answer.answers, [IpAddr::from([93, 184, 216, 34])]);
        assert_eq!((answer.name, answer.response_code), (b"example.com".to_vec(), 0));
    }

    #[test]
    fn what_is_cut_or_asks_nothing_is_none() {
        assert_eq!(parse(&QUESTION[..20]), None);
        assert_eq!(parse(b"\x12\x34\x01\0\0\0\0\0\0\0\0\0"), None);
        assert_eq!(parse(b""), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn altered_answers_are_taken(at in 0..ANSWER.len(), byte: u8) {
            let mut bytes = ANSWER.to_vec();
            bytes[at] = byte;
            let _ = parse(&bytes);
        }
    }
}
