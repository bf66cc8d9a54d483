//! Reads images as a driver does: cubins and code objects are ELF, PTX is text.

use std::collections::{BTreeMap, BTreeSet};

use engine::backend::gpu::images::Image;

fn number(bytes: &[u8], at: u64, size: usize) -> u64 {
    let at = usize::try_from(at).expect("an offset");
    bytes[at..at + size].iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

/// A symbol's name, kind (the ELF standard's STT) and maker's bits (`st_other`).
struct Symbol {
    name: String,
    kind: u8,
    other: u8,
    /// Index of its section; 0 where it is not defined.
    section: u64,
    /// Its address, and where in the file its section's addresses begin at 0.
    at: (u64, u64),
}

/// All symbols of a 64-bit little-endian ELF file.
fn symbols(elf: &[u8]) -> Vec<Symbol> {
    assert_eq!(elf[..6], *b"\x7fELF\x02\x01", "64-bit little-endian ELF");
    let (table, size, count) = (number(elf, 40, 8), number(elf, 58, 2), number(elf, 60, 2));
    let section = |index: u64| {
        let at = table + size * index;
        // Kind, offset, bytes, link.
        (
            number(elf, at + 4, 4),
            number(elf, at + 24, 8),
            number(elf, at + 32, 8),
            number(elf, at + 40, 4),
        )
    };
    // Offset less address; numbers from 0xff00 on stand for no section.
    let base = |index: u64| match index {
        0xff00.. => 0,
        _ => section(index).1.wrapping_sub(number(elf, table + size * index + 16, 8)),
    };
    let mut found = Vec::new();
    for (kind, offset, bytes, link) in (0..count).map(section) {
        // SHT_SYMTAB and SHT_DYNSYM; stripped code objects have the second only.
        if kind != 2 && kind != 11 {
            continue;
        }
        let (_, names, length, _) = section(link);
        let names = &elf[names as usize..(names + length) as usize];
        for at in (offset..offset + bytes).step_by(24) {
            let name = &names[number(elf, at, 4) as usize..];
            let end = name.iter().position(|&byte| byte == 0).expect("a NUL");
            found.push(Symbol {
                name: String::from_utf8_lossy(&name[..end]).into_owned(),
                kind: elf[at as usize + 4] & 15,
                other: elf[at as usize + 5],
                section: number(elf, at + 6, 2),
                at: (number(elf, at + 8, 8), base(number(elf, at + 6, 2))),
            });
        }
    }
    found
}

fn text(image: &Image) -> &str {
    assert_eq!(image.bytes.last(), Some(&0), "{}: PTX without its NUL", image.source);
    std::str::from_utf8(&image.bytes[..image.bytes.len() - 1]).expect("text")
}

/// Names of an image's entries, out of its bytes.
pub fn entries(image: &Image) -> BTreeSet<String> {
    if image.arch.starts_with("compute_") {
        return bounds(image).map(|(name, _)| name).collect();
    }
    let symbols = symbols(image.bytes).into_iter();
    if image.arch.starts_with("gfx") {
        // Descriptors, which launches name; the functions beside them lack the ending.
        return symbols.filter_map(|s| Some(s.name.strip_suffix(".kd")?.to_string())).collect();
    }
    const FUNCTION: u8 = 2;
    const ENTRY: u8 = 0x10; // STO_CUDA_ENTRY
    let entry = |symbol: &Symbol| symbol.kind == FUNCTION && symbol.other & ENTRY != 0;
    symbols.filter(entry).map(|symbol| symbol.name).collect()
}

/// Names that an image uses and does not define, which AMD's runtime takes for variables of the host.
pub fn undefined(image: &Image) -> Vec<String> {
    let symbols = symbols(image.bytes).into_iter();
    symbols.filter(|s| s.section == 0 && !s.name.is_empty()).map(|s| s.name).collect()
}

/// What a kernel descriptor of AMD's says ("Kernel Descriptor" in LLVM's "User Guide for AMDGPU
/// Backend").
pub struct Descriptor {
    /// Bytes of static shared memory.
    pub shared: u32,
    /// Bytes of memory of a thread's own.
    pub scratch: u32,
    /// Bytes of arguments.
    pub arguments: u32,
    /// Lanes.
    pub wave: u32,
    /// WGP mode: a block is spread over two compute units.
    pub spread: bool,
}

/// The kernels of a code object.
pub fn descriptors(image: &Image) -> BTreeMap<String, Descriptor> {
    let kernel = |symbol: Symbol| {
        let name = symbol.name.strip_suffix(".kd")?.to_string();
        let at = symbol.at.0.wrapping_add(symbol.at.1);
        let field = |offset: u64, size| number(image.bytes, at + offset, size) as u32;
        let (resources, properties) = (field(48, 4), field(56, 2));
        let descriptor = Descriptor {
            shared: field(0, 4),
            scratch: field(4, 4) + (field(52, 4) & 1),
            arguments: field(8, 4),
            wave: if properties & (1 << 10) != 0 { 32 } else { 64 },
            spread: resources & (1 << 29) != 0,
        };
        Some((name, descriptor))
    };
    symbols(image.bytes).into_iter().filter_map(kernel).collect()
}

/// Entries of PTX with the most threads a block of theirs may have.
pub fn bounds(image: &Image) -> impl Iterator<Item = (String, u32)> {
    text(image).split(".entry ").skip(1).map(|entry| {
        let name = entry.split('(').next().expect("a name").trim();
        let bound = entry.split('{').next().and_then(|head| head.split(".maxntid ").nth(1));
        let bound = bound.and_then(|bound| bound.split([',', '\n']).next()?.trim().parse().ok());
        (name.to_string(), bound.unwrap_or_else(|| panic!("{name} has no BOUNDS")))
    })
}

/// Checks that an image is for the machine that it is listed for.
pub fn check_machine(image: &Image) -> Result<(), String> {
    if let Some(version) = image.arch.strip_prefix("compute_") {
        let target = format!(".target sm_{version}");
        return text(image).contains(&target).then_some(()).ok_or(format!("no {target}"));
    }
    let (machine, flags) = (number(image.bytes, 18, 2), number(image.bytes, 48, 4));
    let expected = |what: &str, found: u64, wanted: u64| {
        (found == wanted).then_some(()).ok_or(format!("{what} is {found:#x}, not {wanted:#x}"))
    };
    if image.arch.starts_with("sm_") {
        return expected("the ELF machine (CUDA)", machine, 190);
    }
    expected("the ELF machine (AMDGPU)", machine, 224)?;
    // Code-object version 4, which ROCm 5 loads.
    expected("the ELF ABI version", u64::from(image.bytes[8]), 2)?;
    // EF_AMDGPU_MACH of LLVM's "User Guide for AMDGPU Backend".
    let machines = [
        ("gfx1010", 0x33),
        ("gfx1030", 0x36),
        ("gfx1100", 0x41),
        ("gfx1201", 0x4e),
        ("gfx90a", 0x3f),
        ("gfx942", 0x4c),
    ];
    match machines.iter().find(|(arch, _)| *arch == image.arch) {
        Some(&(_, wanted)) => expected("the ELF flags' card", flags & 0xff, wanted),
        None => Ok(()),
    }
}
