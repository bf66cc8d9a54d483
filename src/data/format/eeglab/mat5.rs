//! MAT files of level 5 (MATLAB 5 to 7, `-v6` and `-v7`).
//!
//! MathWorks, "MAT-File Format", R2024.

use std::borrow::Cow;
use std::io::Read;

use flate2::read::ZlibDecoder;

use super::value::{Array, Value};
use crate::data::format::{number::Number, text};

/// Structs inside cells inside structs ... deeper than any dataset; a damaged file must not
/// exhaust the stack.
const DEEPEST: usize = 48;

/// Bytes before the first variable.
const HEADER: usize = 128;

const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;

/// Variables of a file, inflated and ready to be parsed.
pub(super) struct Mat<'a> {
    big_endian: bool,
    variables: Vec<Cow<'a, [u8]>>,
}

/// What is wrong with a file, in a few words.
pub(super) type Problem = String;

impl<'a> Mat<'a> {
    /// Finds and inflates the variables.
    pub fn open(bytes: &'a [u8]) -> Result<Self, Problem> {
        let big_endian = match bytes.get(126..HEADER) {
            Some(b"IM") => false,
            Some(b"MI") => true,
            _ => return Err("is not a MAT file of level 5".to_string()),
        };
        let mut cursor = Cursor { bytes: bytes.get(HEADER..).unwrap_or_default(), big_endian };
        let mut variables = Vec::new();
        while !cursor.bytes.is_empty() {
            let (kind, payload) = cursor.element().ok_or("is cut short inside a variable")?;
            match kind {
                MATRIX => variables.push(Cow::Borrowed(payload)),
                COMPRESSED => {
                    let inflated = inflate(payload, big_endian)?;
                    variables.extend(inflated.map(Cow::Owned));
                }
                _ => {}
            }
        }
        Ok(Self { big_endian, variables })
    }

    /// The variables and their names. Those that cannot be read are left out and counted.
    pub fn variables(&self) -> (Vec<(String, Value<'_>)>, usize) {
        let (mut found, mut unreadable) = (Vec::new(), 0);
        for bytes in &self.variables {
            match (Cursor { bytes, big_endian: self.big_endian }).matrix(0) {
                Some(variable) => found.push(variable),
                None => unreadable += 1,
            }
        }
        (found, unreadable)
    }
}

/// The matrix of a compressed element without its tag; None where it holds something else.
fn inflate(payload: &[u8], big_endian: bool) -> Result<Option<Vec<u8>>, Problem> {
    let broken = |_| "holds a compressed variable that cannot be inflated".to_string();
    let mut stream = ZlibDecoder::new(payload);
    let mut tag = [0; 8];
    stream.read_exact(&mut tag).map_err(broken)?;
    let mut cursor = Cursor { bytes: &tag, big_endian };
    let (Some(kind), Some(size)) = (cursor.word(), cursor.word()) else { return Ok(None) };
    let mut bytes = Vec::new();
    // Grows with what is really there: the size is the file's claim, and only bounds it.
    stream.take(u64::from(size)).read_to_end(&mut bytes).map_err(broken)?;
    if bytes.len() < size as usize {
        return Err("is cut short inside a compressed variable".to_string());
    }
    Ok((kind == MATRIX).then_some(bytes))
}

#[derive(Clone, Copy)]
struct Cursor<'a> {
    bytes: &'a [u8],
    big_endian: bool,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.bytes.split_at_checked(count)?;
        self.bytes = rest;
        Some(head)
    }

    fn word(&mut self) -> Option<u32> {
        let bytes = self.take(4)?.first_chunk().copied()?;
        Some(if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    /// Type and payload of the next element, padding passed over.
    fn element(&mut self) -> Option<(u32, &'a [u8])> {
        let first = self.word()?;
        // A small element: type and size share a word, four bytes of payload follow.
        if first >> 16 != 0 {
            let payload = self.take(4)?.get(..(first >> 16) as usize)?;
            return Some((first & 0xffff, payload));
        }
        let size = self.word()? as usize;
        let payload = self.take(size)?;
        if first != COMPRESSED {
            // The last element may lack its padding.
            let padding = size.next_multiple_of(8) - size;
            self.take(padding.min(self.bytes.len()))?;
        }
        Some((first, payload))
    }

    fn integers(&mut self) -> Option<Vec<usize>> {
        let (kind, bytes) = self.element()?;
        let values = number(kind)?.values(bytes, self.big_endian);
        values.into_iter().map(|v| (v >= 0.0 && v < 2f64.powi(48)).then_some(v as usize)).collect()
    }

    /// Name and value of the matrix whose payload this cursor stands on.
    fn matrix(&mut self, depth: usize) -> Option<(String, Value<'a>)> {
        if depth > DEEPEST {
            return None;
        }
        let (_, flags) = self.element()?;
        let flags = Cursor { bytes: flags, ..*self }.word()?;
        let (class, complex) = (flags & 0xff, flags & 0x800 != 0);
        // Objects of newer classes have a layout of their own.
        if class >= 16 {
            return Some((String::new(), Value::Other));
        }
        let dims = self.integers()?;
        let count = dims.iter().try_fold(1_usize, |product, &n| product.checked_mul(n))?;
        let (_, name) = self.element()?;
        let value = match class {
            1 => Value::Cell(self.matrices(count, depth)?),
            2 => self.structure(count, depth)?,
            4 => self.characters()?,
            6..=15 if !complex => self.numbers(dims, count)?,
            _ => Value::Other,
        };
        Some((text(name), value))
    }

    fn matrices(&mut self, count: usize, depth: usize) -> Option<Vec<Value<'a>>> {
        // Each takes 8 bytes at least, which bounds what a damaged count can ask for.
        if count > self.bytes.len() / 8 {
            return None;
        }
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            let (kind, payload) = self.element()?;
            let value = match (kind, payload) {
                (MATRIX, []) => Value::Numbers(Array {
                    dims: vec![0, 0],
                    number: Number::F64,
                    big_endian: self.big_endian,
                    bytes: Cow::Borrowed(&[]),
                }),
                // What one field holds must not cost the others.
                (MATRIX, payload) => {
                    let inner = Cursor { bytes: payload, ..*self }.matrix(depth + 1);
                    inner.map_or(Value::Other, |(_, value)| value)
                }
                _ => Value::Other,
            };
            values.push(value);
        }
        Some(values)
    }

    fn structure(&mut self, count: usize, depth: usize) -> Option<Value<'a>> {
        let width = *self.integers()?.first()?;
        let (_, names) = self.element()?;
        if width == 0 {
            return None;
        }
        let names: Vec<String> = names
            .chunks_exact(width)
            .map(|name| text(name.split(|&b| b == 0).next().unwrap_or_default()))
            .collect();
        let values = self.matrices(count.checked_mul(names.len())?, depth)?;
        let mut values = values.into_iter();
        let elements = if names.is_empty() { 0 } else { count };
        let elements = (0..elements).map(|_| values.by_ref().take(names.len()).collect()).collect();
        Some(Value::Struct(names, elements))
    }

    fn characters(&mut self) -> Option<Value<'a>> {
        let (kind, bytes) = self.element()?;
        // 16: UTF-8, 1 and 2: bytes; else one code unit per number.
        if matches!(kind, 1 | 2 | 16) {
            return Some(Value::Text(text(bytes)));
        }
        let number = if kind == 17 { Number::U16 } else { number(kind)? };
        let units = number.values(bytes, self.big_endian).into_iter().map(|v| v as u16);
        let decoded = char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER));
        Some(Value::Text(decoded.collect()))
    }

    fn numbers(&mut self, dims: Vec<usize>, count: usize) -> Option<Value<'a>> {
        let (kind, bytes) = self.element()?;
        let number = number(kind)?;
        if bytes.len() / number.bytes() < count {
            return None;
        }
        let (big_endian, bytes) = (self.big_endian, Cow::Borrowed(bytes));
        Some(Value::Numbers(Array { dims, number, big_endian, bytes }))
    }
}

fn number(kind: u32) -> Option<Number> {
    Some(match kind {
        1 => Number::I8,
        2 => Number::U8,
        3 => Number::I16,
        4 => Number::U16,
        5 => Number::I32,
        6 => Number::U32,
        7 => Number::F32,
        9 => Number::F64,
        12 => Number::I64,
        13 => Number::U64,
        _ => return None,
    })
}
