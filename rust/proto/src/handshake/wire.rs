//! The byte layout of the handshake's messages; `docs/wire-handshake.md` is normative.

use super::{Assignment, HandshakeError, INFO_LIMIT, Local, PROTOCOL_MAX, PROTOCOL_MIN, Versions};

/// The bytes that begin HELLO and its answers; no text protocol and no TLS record begins with the first.
pub(super) const MAGIC: [u8; 7] = *b"\x89PYDIST";
const KIND_HELLO: u8 = 1;
const KIND_CHALLENGE: u8 = 2;
const KIND_VERSION_MISMATCH: u8 = 3;
const ROLE_INITIATOR: u16 = 1;

/// The length of the magic and the kind.
const PREFIX_LEN: usize = 8;
pub(super) const HELLO_LEN: usize = 68;
pub(super) const CHALLENGE_LEN: usize = 48;
pub(super) const VERSION_MISMATCH_LEN: usize = 12;
pub(super) const PROOF_LEN: usize = 32;

const INFO_HEADER_LEN: usize = 2;
const INFO_TAG_LEN: usize = 32;
const TAG_PYTHON: u8 = 0x01;
const TAG_PACKAGE: u8 = 0x02;
const TAG_ASSIGNMENT: u8 = 0x03;
const ASSIGNMENT_LEN: usize = 21;
/// Fields whose type has this bit are skipped by a reader that does not know them.
const TAG_OPTIONAL: u8 = 0x80;
const PACKAGE_LIMIT: usize = 64;

/// The first message of the initiator.
pub(super) struct Hello {
    pub(super) cluster: [u8; 16],
    pub(super) id: u32,
    pub(super) nonce: [u8; 32],
}

/// The acceptor's answer to a HELLO that it can go on with.
pub(super) struct Challenge {
    pub(super) id: u32,
    pub(super) nonce: [u8; 32],
}

/// A cursor over a message that never reads beyond its end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], HandshakeError> {
        let (head, tail) = self
            .0
            .split_first_chunk()
            .ok_or(HandshakeError::Malformed("message too short"))?;
        self.0 = tail;
        Ok(*head)
    }

    fn u16(&mut self) -> Result<u16, HandshakeError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, HandshakeError> {
        self.array().map(u32::from_le_bytes)
    }

    fn slice(&mut self, len: usize) -> Result<&'a [u8], HandshakeError> {
        let (head, tail) = self
            .0
            .split_at_checked(len)
            .ok_or(HandshakeError::Malformed("field too short"))?;
        self.0 = tail;
        Ok(head)
    }

    fn end(&self) -> Result<(), HandshakeError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(HandshakeError::Malformed("message too long"))
        }
    }
}

/// Refuses a beginning of a message at its first byte that differs from the magic.
fn check_magic(received: &[u8]) -> Result<(), HandshakeError> {
    if received.iter().zip(&MAGIC).all(|(got, want)| got == want) {
        Ok(())
    } else {
        Err(HandshakeError::BadMagic)
    }
}

/// Tells the length of the message that begins with `received`, where HELLO is awaited.
pub(super) fn hello_len(received: &[u8]) -> Result<usize, HandshakeError> {
    check_magic(received)?;
    match received.get(MAGIC.len()) {
        None => Ok(PREFIX_LEN),
        Some(&KIND_HELLO) => Ok(HELLO_LEN),
        Some(_) => Err(HandshakeError::Malformed("this is not a HELLO")),
    }
}

/// Tells the length of the message that begins with `received`, where the answer to HELLO is awaited.
pub(super) fn answer_len(received: &[u8]) -> Result<usize, HandshakeError> {
    check_magic(received)?;
    match received.get(MAGIC.len()) {
        None => Ok(PREFIX_LEN),
        Some(&KIND_CHALLENGE) => Ok(CHALLENGE_LEN),
        Some(&KIND_VERSION_MISMATCH) => Ok(VERSION_MISMATCH_LEN),
        Some(_) => Err(HandshakeError::Malformed("this is not an answer to HELLO")),
    }
}

/// Tells the length of the INFO that begins with `received`.
pub(super) fn info_len(received: &[u8]) -> Result<usize, HandshakeError> {
    let Some((header, _)) = received.split_first_chunk() else {
        return Ok(INFO_HEADER_LEN);
    };
    let len = INFO_HEADER_LEN + usize::from(u16::from_le_bytes(*header)) + INFO_TAG_LEN;
    if len > INFO_LIMIT {
        Err(HandshakeError::TooManyBytes)
    } else {
        Ok(len)
    }
}

pub(super) fn encode_hello(local: &Local, nonce: &[u8; 32]) -> Vec<u8> {
    let mut message = Vec::with_capacity(HELLO_LEN);
    message.extend_from_slice(&MAGIC);
    message.push(KIND_HELLO);
    for field in [PROTOCOL_MIN, PROTOCOL_MAX, 0, ROLE_INITIATOR] {
        message.extend_from_slice(&field.to_le_bytes());
    }
    message.extend_from_slice(&local.cluster);
    message.extend_from_slice(&local.id.to_le_bytes());
    message.extend_from_slice(nonce);
    message
}

/// Decodes a HELLO. The range comes before all else, for a future version may give the rest another meaning.
pub(super) fn decode_hello(message: &[u8]) -> Result<Hello, HandshakeError> {
    let mut reader = Reader(message);
    reader.array::<PREFIX_LEN>()?;
    let theirs = (reader.u16()?, reader.u16()?);
    check_range(theirs)?;
    if theirs.0 > PROTOCOL_MAX || theirs.1 < PROTOCOL_MIN {
        return Err(HandshakeError::ProtocolMismatch {
            ours: (PROTOCOL_MIN, PROTOCOL_MAX),
            theirs,
        });
    }
    if reader.u16()? != 0 {
        return Err(HandshakeError::Malformed("unknown flags in HELLO"));
    }
    if reader.u16()? != ROLE_INITIATOR {
        return Err(HandshakeError::Malformed("unknown role in HELLO"));
    }
    let hello = Hello {
        cluster: reader.array()?,
        id: reader.u32()?,
        nonce: reader.array()?,
    };
    reader.end()?;
    Ok(hello)
}

/// Encodes a CHALLENGE that chooses the newest protocol: with one version there is no other choice.
pub(super) fn encode_challenge(local: &Local, nonce: &[u8; 32]) -> Vec<u8> {
    const { assert!(PROTOCOL_MIN == PROTOCOL_MAX) };
    let mut message = Vec::with_capacity(CHALLENGE_LEN);
    message.extend_from_slice(&MAGIC);
    message.push(KIND_CHALLENGE);
    for field in [PROTOCOL_MAX, 0] {
        message.extend_from_slice(&field.to_le_bytes());
    }
    message.extend_from_slice(&local.id.to_le_bytes());
    message.extend_from_slice(nonce);
    message
}

pub(super) fn encode_version_mismatch() -> Vec<u8> {
    let mut message = Vec::with_capacity(VERSION_MISMATCH_LEN);
    message.extend_from_slice(&MAGIC);
    message.push(KIND_VERSION_MISMATCH);
    for field in [PROTOCOL_MIN, PROTOCOL_MAX] {
        message.extend_from_slice(&field.to_le_bytes());
    }
    message
}

/// Decodes the answer to HELLO; a VERSION_MISMATCH is an error that tells both ranges.
pub(super) fn decode_answer(message: &[u8]) -> Result<Challenge, HandshakeError> {
    let mut reader = Reader(message);
    let prefix: [u8; PREFIX_LEN] = reader.array()?;
    if prefix.ends_with(&[KIND_VERSION_MISMATCH]) {
        let theirs = (reader.u16()?, reader.u16()?);
        reader.end()?;
        check_range(theirs)?;
        if theirs.0 <= PROTOCOL_MAX && theirs.1 >= PROTOCOL_MIN {
            return Err(HandshakeError::Malformed(
                "VERSION_MISMATCH though the ranges overlap",
            ));
        }
        return Err(HandshakeError::ProtocolMismatch {
            ours: (PROTOCOL_MIN, PROTOCOL_MAX),
            theirs,
        });
    }
    if !(PROTOCOL_MIN..=PROTOCOL_MAX).contains(&reader.u16()?) {
        return Err(HandshakeError::Malformed(
            "CHALLENGE chooses a protocol that was not offered",
        ));
    }
    if reader.u16()? != 0 {
        return Err(HandshakeError::Malformed("unknown flags in CHALLENGE"));
    }
    let challenge = Challenge {
        id: reader.u32()?,
        nonce: reader.array()?,
    };
    reader.end()?;
    Ok(challenge)
}

fn check_range((min, max): (u16, u16)) -> Result<(), HandshakeError> {
    if min == 0 || min > max {
        Err(HandshakeError::Malformed("impossible protocol range"))
    } else {
        Ok(())
    }
}

/// Keeps what of a package version may be sent and shown: at most 64 printable ASCII characters.
pub(super) fn printable_package(package: &str) -> String {
    package
        .chars()
        .filter(|c| is_printable(*c))
        .take(PACKAGE_LIMIT)
        .collect()
}

fn is_printable(c: char) -> bool {
    matches!(c, ' '..='~')
}

/// What an INFO says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Info {
    pub(super) versions: Versions,
    pub(super) assignment: Option<Assignment>,
}

/// Encodes INFO up to its tag; `versions.package` went through [`printable_package`].
pub(super) fn encode_info(versions: &Versions, assignment: Option<&Assignment>) -> Vec<u8> {
    let (major, minor, micro) = versions.python;
    let package = versions.package.as_bytes();
    let package = package.get(..PACKAGE_LIMIT).unwrap_or(package);
    let mut fields = vec![
        TAG_PYTHON,
        3,
        major,
        minor,
        micro,
        TAG_PACKAGE,
        package.len() as u8,
    ];
    fields.extend_from_slice(package);
    if let Some(assignment) = assignment {
        fields.extend_from_slice(&[TAG_ASSIGNMENT, ASSIGNMENT_LEN as u8]);
        fields.extend_from_slice(&assignment.id.to_le_bytes());
        fields.push(assignment.topology);
        fields.extend_from_slice(&assignment.cluster);
    }
    let mut message = Vec::with_capacity(INFO_HEADER_LEN + fields.len() + INFO_TAG_LEN);
    message.extend_from_slice(&(fields.len() as u16).to_le_bytes());
    message.extend_from_slice(&fields);
    message
}

/// Splits an INFO into what the tag covers and the tag.
pub(super) fn split_info(message: &[u8]) -> Result<(&[u8], &[u8; INFO_TAG_LEN]), HandshakeError> {
    message
        .split_last_chunk()
        .ok_or(HandshakeError::Malformed("INFO too short"))
}

/// Decodes an INFO without its tag.
pub(super) fn decode_info(signed: &[u8]) -> Result<Info, HandshakeError> {
    let mut reader = Reader(signed);
    if usize::from(reader.u16()?) != reader.0.len() {
        return Err(HandshakeError::Malformed("wrong length of INFO"));
    }
    let (mut python, mut package, mut assignment) = (None, None, None);
    while !reader.0.is_empty() {
        let [tag, len] = reader.array()?;
        let value = reader.slice(usize::from(len))?;
        let repeated = match tag {
            TAG_PYTHON => python.replace(decode_python(value)?).is_some(),
            TAG_PACKAGE => package.replace(decode_package(value)?).is_some(),
            TAG_ASSIGNMENT => assignment.replace(decode_assignment(value)?).is_some(),
            _ if tag & TAG_OPTIONAL != 0 => false,
            _ => return Err(HandshakeError::Malformed("unknown mandatory field in INFO")),
        };
        if repeated {
            return Err(HandshakeError::Malformed("repeated field in INFO"));
        }
    }
    match (python, package) {
        (Some(python), Some(package)) => Ok(Info {
            versions: Versions { python, package },
            assignment,
        }),
        _ => Err(HandshakeError::Malformed("missing field in INFO")),
    }
}

fn decode_python(value: &[u8]) -> Result<(u8, u8, u8), HandshakeError> {
    match *value {
        [major, minor, micro] => Ok((major, minor, micro)),
        _ => Err(HandshakeError::Malformed("Python version in INFO")),
    }
}

/// Decodes what the head gives a process that has no id.
fn decode_assignment(value: &[u8]) -> Result<Assignment, HandshakeError> {
    if value.len() != ASSIGNMENT_LEN {
        return Err(HandshakeError::Malformed("assignment in INFO"));
    }
    let mut reader = Reader(value);
    let id = reader.u32()?;
    let [topology] = reader.array()?;
    let cluster = reader.array()?;
    if id == 0 || cluster == [0; 16] {
        return Err(HandshakeError::Malformed("assignment in INFO"));
    }
    Ok(Assignment {
        id,
        topology,
        cluster,
    })
}

/// Decodes a package version, which may end up in a log: nothing that a terminal interprets gets through.
fn decode_package(value: &[u8]) -> Result<String, HandshakeError> {
    match std::str::from_utf8(value) {
        Ok(text) if value.len() <= PACKAGE_LIMIT && text.chars().all(is_printable) => Ok(text.to_owned()),
        _ => Err(HandshakeError::Malformed("package version in INFO")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(fields: &[u8]) -> Vec<u8> {
        let mut signed = (fields.len() as u16).to_le_bytes().to_vec();
        signed.extend_from_slice(fields);
        signed
    }

    fn versions() -> Versions {
        Versions {
            python: (3, 12, 4),
            package: String::from("1.2"),
        }
    }

    fn plain() -> Info {
        Info {
            versions: versions(),
            assignment: None,
        }
    }

    const FIELDS: &[u8] = b"\x01\x03\x03\x0c\x04\x02\x031.2";

    #[test]
    fn info_round_trips_in_any_order() {
        assert_eq!(encode_info(&versions(), None), info(FIELDS));
        assert_eq!(decode_info(&info(FIELDS)), Ok(plain()));
        assert_eq!(
            decode_info(&info(b"\x02\x031.2\x01\x03\x03\x0c\x04")),
            Ok(plain())
        );
    }

    #[test]
    fn info_skips_unknown_optional_fields_and_refuses_unknown_mandatory_ones() {
        let with = |extra: &[u8]| decode_info(&info(&[extra, FIELDS].concat()));
        assert_eq!(with(b"\x80\x00"), Ok(plain()));
        assert_eq!(with(b"\xff\x02\x00\x01"), Ok(plain()));
        assert_eq!(
            with(b"\x00\x00"),
            Err(HandshakeError::Malformed("unknown mandatory field in INFO"))
        );
        assert_eq!(
            with(b"\x7f\x01\x00"),
            Err(HandshakeError::Malformed("unknown mandatory field in INFO"))
        );
    }

    #[test]
    fn info_carries_an_assignment() {
        let assignment = Assignment {
            id: 7,
            topology: 3,
            cluster: [9; 16],
        };
        let field = [b"\x03\x15\x07\0\0\0\x03".as_slice(), &[9; 16]].concat();
        let whole = info(&[FIELDS, &field].concat());
        assert_eq!(encode_info(&versions(), Some(&assignment)), whole);
        let read = decode_info(&whole).map(|info| info.assignment);
        assert_eq!(read, Ok(Some(assignment)));
        let broken = Err(HandshakeError::Malformed("assignment in INFO"));
        let none = [b"\x03\x15\0\0\0\0\x03".as_slice(), &[9; 16]].concat();
        let nowhere = [b"\x03\x15\x07\0\0\0\x03".as_slice(), &[0; 16]].concat();
        for field in [&none[..], &nowhere, b"\x03\x04\x07\0\0\0"] {
            assert_eq!(decode_info(&info(&[FIELDS, field].concat())), broken);
        }
        let twice = info(&[FIELDS, &field, &field].concat());
        assert_eq!(
            decode_info(&twice),
            Err(HandshakeError::Malformed("repeated field in INFO"))
        );
    }

    #[test]
    fn info_refuses_every_broken_layout() {
        let malformed = |fields: &[u8]| {
            let result = decode_info(&info(fields));
            assert!(
                matches!(result, Err(HandshakeError::Malformed(_))),
                "{fields:?}: {result:?}"
            );
        };
        malformed(b"");
        malformed(&FIELDS[..5]); // no package
        malformed(&FIELDS[5..]); // no Python
        malformed(&[FIELDS, &FIELDS[..5]].concat()); // Python twice
        malformed(&[FIELDS, &FIELDS[5..]].concat()); // package twice
        malformed(b"\x01\x02\x03\x0c\x02\x031.2"); // Python of two numbers
        malformed(b"\x01\x03\x03\x0c\x04\x02\x03\x1b[m"); // a terminal escape
        malformed(b"\x01\x03\x03\x0c\x04\x02\x01\xff"); // not UTF-8
        malformed(&[FIELDS, b"\x80\xff"].concat()); // a field longer than the message
        malformed(&[FIELDS, b"\x80"].concat()); // half a field header
        let long = [&FIELDS[..5], &[TAG_PACKAGE, 65], &[b'1'; 65]].concat();
        malformed(&long);
        for cut in 0..FIELDS.len() {
            malformed(&FIELDS[..cut]);
        }
        assert_eq!(
            decode_info(b"\x00"),
            Err(HandshakeError::Malformed("message too short"))
        );
        assert_eq!(
            decode_info(b"\x01\x00"),
            Err(HandshakeError::Malformed("wrong length of INFO"))
        );
    }

    #[test]
    fn info_length_is_limited_before_its_body_comes() {
        assert_eq!(info_len(&[]), Ok(2));
        assert_eq!(info_len(&[0]), Ok(2));
        assert_eq!(info_len(&478u16.to_le_bytes()), Ok(512));
        assert_eq!(info_len(&479u16.to_le_bytes()), Err(HandshakeError::TooManyBytes));
        assert_eq!(info_len(&[255, 255]), Err(HandshakeError::TooManyBytes));
    }

    #[test]
    fn a_package_is_cut_to_what_the_decoder_takes() {
        assert_eq!(printable_package("1.0\x1b[31m\u{e9}\n+x"), "1.0[31m+x");
        assert_eq!(printable_package(&"\u{20ac}7".repeat(99)), "7".repeat(64));
    }
}
