//! HDF5 as MATLAB writes it: superblock 0, version 1 object headers, symbol-table groups,
//! compact, contiguous or chunked datasets, deflate and shuffle.
//!
//! The HDF Group, "HDF5 File Format Specification", version 3.0, sections named below.

use std::borrow::Cow;
use std::io::Read;

use flate2::read::ZlibDecoder;

use super::mat5::Problem;

/// The most that deflate can expand its input, which bounds what a damaged size can ask for.
const DEFLATE_LIMIT: usize = 1032;

/// Nodes that one walk through a tree may visit: a damaged file can hold a circle.
const MOST_NODES: usize = 1 << 20;

const MAGIC: &[u8] = b"\x89HDF\r\n\x1a\n";

/// Where the superblock may begin: MATLAB writes a block of 512 bytes before it.
const STARTS: [usize; 2] = [0, 512];

/// Whether `bytes` are an HDF5 file.
pub(super) fn is_hdf5(bytes: &[u8]) -> bool {
    STARTS.iter().any(|&at| has(bytes, at, MAGIC))
}

/// A file; every address counts from the start of `bytes`.
#[derive(Clone, Copy)]
pub(super) struct File<'a> {
    bytes: &'a [u8],
    root: usize,
}

/// What a number or reference of a dataset looks like (section IV.A.2.d).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Integer { signed: bool },
    Float,
    Reference,
    Other,
}

/// A dataset's description.
#[derive(Debug, Clone)]
pub(super) struct Dataset<'a> {
    pub dims: Vec<usize>,
    pub kind: Type,
    /// Bytes of one value.
    pub size: usize,
    pub big_endian: bool,
    layout: Layout<'a>,
    filters: Vec<u16>,
}

#[derive(Debug, Clone)]
enum Layout<'a> {
    Compact(&'a [u8]),
    Contiguous { address: usize, size: usize },
    Chunked { tree: usize, dims: Vec<usize> },
    None,
}

/// An object: a group or a dataset, and its attributes.
pub(super) struct Object<'a> {
    /// Addresses of a group's tree of names and heap.
    group: Option<(usize, usize)>,
    pub dataset: Option<Dataset<'a>>,
    attributes: Vec<(String, &'a [u8])>,
}

impl<'a> File<'a> {
    /// Finds the superblock.
    pub fn open(bytes: &'a [u8]) -> Result<Self, Problem> {
        let length = bytes.len();
        let start = STARTS.into_iter().find(|&at| has(bytes, at, MAGIC));
        let bytes = start.and_then(|at| bytes.get(at..)).ok_or("is not an HDF5 file")?;
        if bytes.get(8) != Some(&0) || bytes.get(13..15) != Some(&[8, 8]) {
            return Err("is of a later kind of HDF5 than MATLAB writes".to_string());
        }
        let end = address(bytes, 40).unwrap_or(0);
        if end > length {
            return Err(format!("is cut short: it should be {end} bytes long, but has {length}"));
        }
        // The object header's address in the root's symbol table entry (section II.A).
        let root = address(bytes, 64).ok_or("has no root group")?;
        Ok(Self { bytes, root })
    }

    /// The root group.
    pub fn root(&self) -> usize {
        self.root
    }

    /// Reads the object header at `at` (section IV.A.1.a).
    pub fn object(&self, at: usize) -> Option<Object<'a>> {
        let mut object = Object { group: None, dataset: None, attributes: Vec::new() };
        let (mut space, mut kind, mut layout, mut filters) = (None, None, Layout::None, Vec::new());
        if self.bytes.get(at) != Some(&1) {
            return None;
        }
        let size = word(self.bytes, at + 8, 4)?;
        let mut blocks = vec![(at + 16, size)];
        let mut visited = 0;
        while let Some((start, size)) = blocks.pop() {
            let block = self.bytes.get(start..start.checked_add(size)?)?;
            let mut at = 0;
            while let (Some(id), Some(size)) = (word(block, at, 2), word(block, at + 2, 2)) {
                let Some(body) = block.get(at + 8..at + 8 + size) else { break };
                at += 8 + size;
                visited += 1;
                if visited > MOST_NODES {
                    return None;
                }
                match id {
                    0x01 => space = dimensions(body),
                    0x03 => kind = datatype(body),
                    0x08 => layout = data_layout(body)?,
                    0x0b => filters = pipeline(body)?,
                    0x0c => object.attributes.extend(attribute(body)),
                    0x10 => blocks.push((address(body, 0)?, word(body, 8, 8)?)),
                    0x11 => object.group = address(body, 0).zip(address(body, 8)),
                    _ => {}
                }
            }
        }
        if let (Some(dims), Some((kind, size, big_endian))) = (space, kind) {
            object.dataset = Some(Dataset { dims, kind, size, big_endian, layout, filters });
        }
        Some(object)
    }

    /// Names and addresses of a group's objects (sections III.A.1, III.B, III.D).
    pub fn children(&self, object: &Object<'a>) -> Option<Vec<(String, usize)>> {
        let (tree, heap) = object.group?;
        if !has(self.bytes, heap, b"HEAP") {
            return None;
        }
        let names = self.bytes.get(address(self.bytes, heap + 24)?..)?;
        let mut found = Vec::new();
        for leaf in self.leaves(tree, 8)? {
            let node = leaf.child;
            if !has(self.bytes, node, b"SNOD") {
                return None;
            }
            for i in 0..word(self.bytes, node + 6, 2)? {
                let entry = node + 8 + 40 * i;
                let name = names.get(word(self.bytes, entry, 8)?..)?;
                let name = name.split(|&b| b == 0).next()?;
                let name = String::from_utf8_lossy(name).into_owned();
                found.push((name, address(self.bytes, entry + 8)?));
            }
        }
        Some(found)
    }

    /// The entries of a version 1 B-tree's leaves, whose keys are `key` bytes long.
    fn leaves(&self, tree: usize, key: usize) -> Option<Vec<Leaf<'a>>> {
        let (mut found, mut nodes) = (Vec::new(), vec![tree]);
        let mut visited = 0;
        while let Some(node) = nodes.pop() {
            visited += 1;
            let many = visited + found.len() + nodes.len() > MOST_NODES;
            if !has(self.bytes, node, b"TREE") || many {
                return None;
            }
            let level = *self.bytes.get(node + 5)?;
            let step = key + 8;
            let mut children = Vec::new();
            for i in 0..word(self.bytes, node + 6, 2)? {
                let at = node + 24 + step * i;
                let key = self.bytes.get(at..at + key)?;
                children.push(Leaf { key, child: address(self.bytes, at + step - 8)? });
            }
            if level == 0 {
                found.extend(children);
            } else {
                nodes.extend(children.iter().rev().map(|entry| entry.child));
            }
        }
        Some(found)
    }

    /// The bytes of a dataset's values, in the file's order; None where they are not what the
    /// description promises.
    pub fn values(&self, dataset: &Dataset<'a>) -> Option<Cow<'a, [u8]>> {
        let count = dataset.dims.iter().try_fold(1_usize, |n, &dim| n.checked_mul(dim))?;
        let size = count.checked_mul(dataset.size)?;
        match &dataset.layout {
            Layout::Compact(bytes) => Some(Cow::Borrowed(bytes.get(..size)?)),
            Layout::Contiguous { address, size: stored } if *stored >= size => {
                Some(Cow::Borrowed(self.bytes.get(*address..address.checked_add(size)?)?))
            }
            Layout::Chunked { tree, dims } if dims.len() == dataset.dims.len() => {
                if size / DEFLATE_LIMIT > self.bytes.len() {
                    return None;
                }
                let mut out = vec![0; size];
                for leaf in self.leaves(*tree, 8 * (dims.len() + 2))? {
                    let stored = word(leaf.key, 0, 4)?;
                    let bytes = self.bytes.get(leaf.child..leaf.child.checked_add(stored)?)?;
                    let volume = dims.iter().try_fold(dataset.size, |n, &d| n.checked_mul(d))?;
                    let skipped = word(leaf.key, 4, 4)?;
                    let chunk = unfilter(bytes, dataset, skipped, volume)?;
                    let offsets: Option<Vec<usize>> =
                        (0..dims.len()).map(|i| word(leaf.key, 8 + 8 * i, 8)).collect();
                    place(&chunk, dims, &offsets?, dataset, &mut out)?;
                }
                Some(Cow::Owned(out))
            }
            _ => None,
        }
    }
}

impl Object<'_> {
    /// Value of an attribute: text, or the number of a small integer.
    pub fn attribute(&self, name: &str) -> Option<&[u8]> {
        self.attributes.iter().find(|(n, _)| n == name).map(|(_, value)| *value)
    }

    /// Whether this is a group.
    pub fn is_group(&self) -> bool {
        self.group.is_some()
    }
}

struct Leaf<'a> {
    key: &'a [u8],
    child: usize,
}

fn has(bytes: &[u8], at: usize, magic: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(magic))
}

/// A little-endian integer of `width` bytes.
fn word(bytes: &[u8], at: usize, width: usize) -> Option<usize> {
    let bytes = bytes.get(at..at.checked_add(width)?)?;
    let value = bytes.iter().rev().fold(0_u64, |value, &b| value << 8 | u64::from(b));
    usize::try_from(value).ok()
}

/// An address; None where it is undefined (all ones) or beyond every file.
fn address(bytes: &[u8], at: usize) -> Option<usize> {
    word(bytes, at, 8).filter(|&address| address < 1 << 48)
}

/// Section IV.A.2.b.
fn dimensions(body: &[u8]) -> Option<Vec<usize>> {
    let start = if *body.first()? == 1 { 8 } else { 4 };
    (0..usize::from(*body.get(1)?)).map(|i| word(body, start + 8 * i, 8)).collect()
}

/// Section IV.A.2.d: kind, bytes of a value, whether big endian.
fn datatype(body: &[u8]) -> Option<(Type, usize, bool)> {
    let (class, bits) = (*body.first()? & 0xf, *body.get(1)?);
    let kind = match class {
        0 => Type::Integer { signed: bits & 8 != 0 },
        1 => Type::Float,
        7 => Type::Reference,
        _ => Type::Other,
    };
    Some((kind, word(body, 4, 4).filter(|&size| size > 0)?, class < 2 && bits & 1 != 0))
}

/// Section IV.A.2.i, version 3.
fn data_layout(body: &[u8]) -> Option<Layout<'_>> {
    match body.get(..2)? {
        [3, 0] => Some(Layout::Compact(body.get(4..4 + word(body, 2, 2)?)?)),
        [3, 1] => Some(match address(body, 2) {
            Some(address) => Layout::Contiguous { address, size: word(body, 10, 8)? },
            None => Layout::None,
        }),
        [3, 2] => {
            let Some(tree) = address(body, 3) else { return Some(Layout::None) };
            let rank = usize::from(*body.get(2)?).checked_sub(1)?;
            let dims: Option<Vec<usize>> = (0..rank).map(|i| word(body, 11 + 4 * i, 4)).collect();
            Some(Layout::Chunked { tree, dims: dims.filter(|d| !d.contains(&0))? })
        }
        _ => Some(Layout::None),
    }
}

/// Section IV.A.2.l: the filters' numbers, in the order in which they were applied.
fn pipeline(body: &[u8]) -> Option<Vec<u16>> {
    let version = *body.first()?;
    let mut at = if version == 1 { 8 } else { 2 };
    let mut filters = Vec::new();
    for _ in 0..*body.get(1)? {
        let id = word(body, at, 2)?;
        let named = version == 1 || id >= 256;
        let name = if named { word(body, at + 2, 2)? } else { 0 };
        let fixed = if named { 8 } else { 6 };
        let parameters = word(body, at + fixed - 2, 2)?;
        let padding = if version == 1 && parameters % 2 == 1 { 4 } else { 0 };
        at += fixed + name.next_multiple_of(if version == 1 { 8 } else { 1 });
        at += 4 * parameters + padding;
        filters.push(u16::try_from(id).ok()?);
    }
    Some(filters)
}

/// Section IV.A.2.m: name and value.
fn attribute(body: &[u8]) -> Option<(String, &[u8])> {
    let version = *body.first()?;
    let sizes = [word(body, 2, 2)?, word(body, 4, 2)?, word(body, 6, 2)?];
    let padded = |size: usize| if version == 1 { size.next_multiple_of(8) } else { size };
    let start = if version == 3 { 9 } else { 8 };
    let [name, kind, space] = sizes.map(padded);
    let name = body.get(start..start + name)?.split(|&b| b == 0).next()?;
    let value = body.get(start + padded(sizes[0]) + kind + space..)?;
    Some((String::from_utf8_lossy(name).into_owned(), value))
}

/// Undoes the filters of one chunk of `volume` bytes; `skipped` has a bit for each that was not
/// applied to it.
fn unfilter<'a>(
    bytes: &'a [u8],
    dataset: &Dataset<'_>,
    skipped: usize,
    volume: usize,
) -> Option<Cow<'a, [u8]>> {
    let mut bytes = Cow::Borrowed(bytes);
    for (i, &filter) in dataset.filters.iter().enumerate().rev() {
        if i < 32 && skipped >> i & 1 == 1 {
            continue;
        }
        match filter {
            1 => {
                let mut inflated = Vec::new();
                let limit = u64::try_from(volume).ok()?.checked_add(4)?;
                ZlibDecoder::new(&*bytes).take(limit).read_to_end(&mut inflated).ok()?;
                bytes = Cow::Owned(inflated);
            }
            2 => bytes = Cow::Owned(unshuffle(&bytes, dataset.size)),
            // A checksum follows the chunk.
            3 => {
                let end = bytes.len().checked_sub(4)?;
                bytes = Cow::Owned(bytes.get(..end)?.to_vec());
            }
            _ => return None,
        }
    }
    (bytes.len() == volume).then_some(bytes)
}

/// First bytes of all values, then second bytes of all, ...: back to value after value.
fn unshuffle(bytes: &[u8], size: usize) -> Vec<u8> {
    let count = bytes.len() / size.max(1);
    let mut out = bytes.to_vec();
    for (plane, place) in bytes.chunks_exact(count.max(1)).take(size).zip(0..) {
        for (value, &byte) in out.chunks_exact_mut(size).zip(plane) {
            if let Some(to) = value.get_mut(place) {
                *to = byte;
            }
        }
    }
    out
}

/// Copies a chunk to its place in the whole, row by row of the fastest dimension.
fn place(
    chunk: &[u8],
    dims: &[usize],
    offsets: &[usize],
    dataset: &Dataset<'_>,
    out: &mut [u8],
) -> Option<()> {
    let (&width, outer) = dims.split_last()?;
    let (&start, outer_offsets) = offsets.split_last()?;
    let (&whole, outer_dims) = dataset.dims.split_last()?;
    let kept = width.min(whole.checked_sub(start)?) * dataset.size;
    for (row, from) in chunk.chunks_exact(width * dataset.size).enumerate() {
        let (mut rest, mut index, mut stride, mut inside) = (row, 0_usize, 1_usize, true);
        for ((&dim, &offset), &all) in outer.iter().zip(outer_offsets).zip(outer_dims).rev() {
            let at = offset.checked_add(rest % dim)?;
            rest /= dim;
            inside &= at < all;
            index = index.checked_add(at.checked_mul(stride)?)?;
            stride = stride.checked_mul(all)?;
        }
        if inside {
            let at = index.checked_mul(whole)?.checked_add(start)?.checked_mul(dataset.size)?;
            out.get_mut(at..at.checked_add(kept)?)?.copy_from_slice(from.get(..kept)?);
        }
    }
    Some(())
}
