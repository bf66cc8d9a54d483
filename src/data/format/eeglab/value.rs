//! MATLAB variables in memory, whichever kind of MAT file they came from.

use std::borrow::Cow;

use crate::data::format::number::Number;

/// A numeric array, column after column, as stored.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Array<'a> {
    pub dims: Vec<usize>,
    pub number: Number,
    pub big_endian: bool,
    pub bytes: Cow<'a, [u8]>,
}

/// A MATLAB variable.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'a> {
    Numbers(Array<'a>),
    /// A char array; rows follow each other.
    Text(String),
    /// A struct array: names of the fields, and their values for each of its elements.
    Struct(Vec<String>, Vec<Vec<Value<'a>>>),
    Cell(Vec<Value<'a>>),
    /// What no EEG is stored in: objects, function handles, sparse and complex arrays.
    Other,
}

impl<'a> Value<'a> {
    /// A field of the first element of a struct.
    pub fn field(&self, name: &str) -> Option<&Value<'a>> {
        self.elements(name).into_iter().next().flatten()
    }

    /// A field of every element of a struct array; empty where this is none.
    pub fn elements(&self, name: &str) -> Vec<Option<&Value<'a>>> {
        let Self::Struct(fields, elements) = self else { return Vec::new() };
        let place = fields.iter().position(|field| field == name);
        elements.iter().map(|values| values.get(place?)).collect()
    }

    /// Elements of a struct array.
    pub fn len(&self) -> usize {
        if let Self::Struct(_, elements) = self { elements.len() } else { 0 }
    }

    /// The first number, of text too where it reads as one.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Numbers(array) => {
                let first = array.bytes.get(..array.number.bytes())?;
                array.number.values(first, array.big_endian).first().copied()
            }
            Self::Text(text) => text.trim().parse().ok(),
            Self::Cell(values) => values.first()?.number(),
            _ => None,
        }
    }

    /// Text, of a number too; None where it is empty or neither.
    pub fn text(&self) -> Option<String> {
        let text = match self {
            Self::Text(text) => {
                text.trim_matches(|c: char| c.is_whitespace() || c == '\0').to_string()
            }
            Self::Cell(values) => values.first()?.text()?,
            Self::Numbers(_) => self.number()?.to_string(),
            _ => return None,
        };
        (!text.is_empty()).then_some(text)
    }
}
