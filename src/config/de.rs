//! A serde deserializer over TOML values whose errors say where they arose and what was expected,
//! as data: the message, the place and the nearest valid name are made from these.

use std::fmt::{self, Display};

use serde::de::value::SeqDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, Expected, IntoDeserializer, Unexpected};
use serde::forward_to_deserialize_any;
use toml::Value;

/// What a value of the settings can be refused for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Refusal {
    /// No field has this name; those that exist.
    UnknownField(Vec<String>),
    /// No choice has this word; those that exist.
    UnknownChoice { word: String, choices: Vec<String> },
    /// What came, and what was expected.
    WrongType { found: String, expected: String },
    /// Anything else.
    Other(String),
}

/// A refusal and the dotted path of the field it concerns.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ReadError {
    /// Innermost first.
    reversed: Vec<String>,
    pub(super) refusal: Refusal,
}

impl ReadError {
    fn new(refusal: Refusal) -> Self {
        Self { reversed: Vec::new(), refusal }
    }

    fn under(mut self, key: &str) -> Self {
        self.reversed.push(key.to_string());
        self
    }

    /// As in "train.lr".
    pub(super) fn path(&self) -> String {
        let keys: Vec<&str> = self.reversed.iter().rev().map(String::as_str).collect();
        keys.join(".")
    }
}

impl Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.path(), self.refusal)
    }
}

impl std::error::Error for ReadError {}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_string()).collect()
}

impl de::Error for ReadError {
    fn custom<T: Display>(message: T) -> Self {
        Self::new(Refusal::Other(message.to_string()))
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let refusal =
            Refusal::WrongType { found: found.to_string(), expected: expected.to_string() };
        Self::new(refusal)
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_field(name: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Refusal::UnknownField(owned(expected))).under(name)
    }

    fn unknown_variant(word: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Refusal::UnknownChoice { word: word.to_string(), choices: owned(expected) })
    }
}

/// A TOML value as input.
pub(super) struct Input(pub(super) Value);

impl IntoDeserializer<'_, ReadError> for Input {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Input {
    type Error = ReadError;

    fn deserialize_any<V: de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.0 {
            Value::String(text) => visitor.visit_string(text),
            Value::Integer(whole) => visitor.visit_i64(whole),
            Value::Float(real) => visitor.visit_f64(real),
            Value::Boolean(truth) => visitor.visit_bool(truth),
            Value::Datetime(time) => visitor.visit_string(time.to_string()),
            Value::Array(items) => {
                let mut items = SeqDeserializer::new(items.into_iter().map(Input));
                let value = visitor.visit_seq(&mut items)?;
                items.end()?;
                Ok(value)
            }
            Value::Table(table) => {
                visitor.visit_map(Fields { rest: table.into_iter(), next: None })
            }
        }
    }

    fn deserialize_option<V: de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: de::Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: de::Visitor<'de>>(
        self,
        _name: &'static str,
        choices: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let word = match self.0 {
            Value::String(word) => word,
            // `amp = false` says "off" as clearly as a word does.
            Value::Boolean(false) if choices.contains(&"off") => "off".to_string(),
            other => {
                return Err(ReadError::new(Refusal::WrongType {
                    found: other.type_str().to_string(),
                    expected: format!("one of {}", choices.join(", ")),
                }));
            }
        };
        visitor.visit_enum(word.into_deserializer())
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

/// The fields of a table, remembering the key so that an error below it can name it.
struct Fields {
    rest: toml::map::IntoIter<String, Value>,
    next: Option<(String, Value)>,
}

impl<'de> de::MapAccess<'de> for Fields {
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, ReadError> {
        self.next = self.rest.next();
        match &self.next {
            Some((key, _)) => seed.deserialize(key.as_str().into_deserializer()).map(Some),
            None => Ok(None),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ReadError> {
        let Some((key, value)) = self.next.take() else {
            return Err(de::Error::custom("a value was read before its key"));
        };
        seed.deserialize(Input(value)).map_err(|error| error.under(&key))
    }
}
