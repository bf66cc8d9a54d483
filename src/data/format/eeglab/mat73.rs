//! MAT files of version 7.3: MATLAB's variables as HDF5 objects.
//!
//! A struct is a group, an array of structs a group whose datasets are references to the values
//! of each element; dimensions are reversed, the order of the values is MATLAB's own.

use std::borrow::Cow;

use super::hdf5::{Dataset, File, Object, Type};
use super::mat5::Problem;
use super::value::{Array, Value};
use crate::data::format::number::Number;

/// Structs inside structs deeper than this are left out: references can go in circles.
const DEEPEST: usize = 6;

/// The variables `wanted`, at the root and in structs right below it. Others stay unread.
pub(super) fn variables<'a>(
    bytes: &'a [u8],
    wanted: &[&str],
) -> Result<Vec<(String, Value<'a>)>, Problem> {
    let file = File::open(bytes)?;
    let root = file.object(file.root()).ok_or("has a damaged root group")?;
    let children = file.children(&root).ok_or("has a damaged root group")?;
    let mut found = Vec::new();
    for (name, at) in children.into_iter().filter(|(name, _)| wanted.contains(&name.as_str())) {
        let object = file.object(at).ok_or_else(|| format!("its variable {name} is damaged"))?;
        let value = match file.children(&object) {
            Some(fields) if name == "EEG" => {
                let fields = fields.into_iter().filter(|(f, _)| wanted.contains(&f.as_str()));
                let (names, values) = fields.map(|(f, at)| (f, value(&file, at, 0))).unzip();
                Value::Struct(names, vec![values])
            }
            _ => value(&file, at, 0),
        };
        found.push((name, value));
    }
    Ok(found)
}

fn value<'a>(file: &File<'a>, at: usize, depth: usize) -> Value<'a> {
    let inner = || {
        let object = file.object(at).filter(|_| depth < DEEPEST)?;
        match &object.dataset {
            Some(dataset) => leaf(file, &object, dataset, depth),
            None if object.is_group() => structure(file, &object, depth),
            None => None,
        }
    };
    inner().unwrap_or(Value::Other)
}

fn leaf<'a>(
    file: &File<'a>,
    object: &Object<'a>,
    dataset: &Dataset<'a>,
    depth: usize,
) -> Option<Value<'a>> {
    let class = object.attribute("MATLAB_class").unwrap_or_default();
    // The values of an empty array are its dimensions.
    let empty = object.attribute("MATLAB_empty").is_some_and(|v| v.first() == Some(&1));
    let number = match (dataset.kind, dataset.size) {
        (Type::Reference, _) if empty => return Some(Value::Cell(Vec::new())),
        (Type::Reference, _) => {
            let values =
                references(file, dataset)?.into_iter().map(|at| value(file, at, depth + 1));
            return Some(Value::Cell(values.collect()));
        }
        (Type::Integer { signed: true }, 1) => Number::I8,
        (Type::Integer { signed: false }, 1) => Number::U8,
        (Type::Integer { signed: true }, 2) => Number::I16,
        (Type::Integer { signed: false }, 2) => Number::U16,
        (Type::Integer { signed: true }, 4) => Number::I32,
        (Type::Integer { signed: false }, 4) => Number::U32,
        (Type::Integer { signed: true }, 8) => Number::I64,
        (Type::Integer { signed: false }, 8) => Number::U64,
        (Type::Float, 4) => Number::F32,
        (Type::Float, 8) => Number::F64,
        _ => return None,
    };
    let bytes = if empty { Cow::Borrowed(&[][..]) } else { file.values(dataset)? };
    if class.starts_with(b"char") {
        let units = number.values(&bytes, dataset.big_endian).into_iter().map(|v| v as u16);
        let text = char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER));
        return Some(Value::Text(text.collect()));
    }
    let dims = if empty { vec![0, 0] } else { dataset.dims.iter().rev().copied().collect() };
    Some(Value::Numbers(Array { dims, number, big_endian: dataset.big_endian, bytes }))
}

fn references<'a>(file: &File<'a>, dataset: &Dataset<'a>) -> Option<Vec<usize>> {
    let bytes = file.values(dataset).filter(|_| dataset.size == 8)?;
    let values = Number::U64.values(&bytes, false).into_iter();
    values.map(|v| (v < 2f64.powi(48)).then_some(v as usize)).collect()
}

/// One struct, or an array of structs where every field is a list of references.
fn structure<'a>(file: &File<'a>, object: &Object<'a>, depth: usize) -> Option<Value<'a>> {
    let fields = file.children(object)?;
    let mut lists = Vec::new();
    for (_, at) in &fields {
        let field = file.object(*at)?;
        let list = field.dataset.as_ref().filter(|d| d.kind == Type::Reference);
        let list = list.filter(|_| field.attribute("MATLAB_class").is_none());
        lists.extend(list.map(|dataset| references(file, dataset)));
    }
    let lists: Option<Vec<Vec<usize>>> = lists.into_iter().collect();
    let names: Vec<String> = fields.iter().map(|(name, _)| name.clone()).collect();
    match lists? {
        lists if lists.len() == fields.len() && !lists.is_empty() => {
            let count = lists.iter().map(Vec::len).min().unwrap_or(0);
            let element = |i: usize| {
                let values = lists.iter().filter_map(|list| list.get(i));
                values.map(|&at| value(file, at, depth + 1)).collect()
            };
            Some(Value::Struct(names, (0..count).map(element).collect()))
        }
        _ => {
            let values = fields.iter().map(|(_, at)| value(file, *at, depth + 1)).collect();
            Some(Value::Struct(names, vec![values]))
        }
    }
}
