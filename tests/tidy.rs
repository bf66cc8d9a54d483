//! The house rules, kept by a test: short files and functions, `unsafe` in its rooms and argued, no
//! panics by carelessness, a heading on every file. The rules themselves are tested on planted
//! violations.

use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a file and of a function.
const FILE_LINES: usize = 600;
const FUNCTION_LINES: usize = 70;
/// The only places for `unsafe`; the last is a counting allocator.
const UNSAFE_HOMES: [&str; 4] =
    ["src/backend/gpu", "src/backend/cpu/simd", "src/capi", "tests/allocation"];
/// What the rules apply to.
const FOLDERS: [&str; 6] = ["src", "benches", "tests", "kernels", "examples", "capi"];
/// Made by a program; a test compares it with what it is made from.
const GENERATED: [&str; 1] = ["src/backend/gpu/hip/sys.rs"];
const DEVICE_CODE: [&str; 7] = ["cu", "cuh", "hip", "h", "hpp", "c", "cpp"];
/// Words of C before parentheses that are no function's name.
const NO_FUNCTION: [&str; 6] = ["if", "for", "while", "switch", "catch", "return"];

/// A source file: its text, and the text with everything but code blanked out.
struct Source {
    /// Relative to the package, with "/".
    path: String,
    text: String,
    /// As long as `text`, lines in the same places; comments, strings and characters are spaces.
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let rust = path.ends_with(".rs");
        Self { path: path.to_string(), text: text.to_string(), code: mask(text, rust) }
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn line_of(&self, byte: usize) -> usize {
        1 + self.text.as_bytes()[..byte].iter().filter(|&&b| b == b'\n').count()
    }

    fn finding(&self, byte: usize, problem: impl Into<String>) -> String {
        format!("{}:{}: {}", self.path, self.line_of(byte), problem.into())
    }
}

/// Blanks comments, strings and characters, keeping lengths and line ends.
fn mask(text: &str, rust: bool) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes.get(at + 1) == Some(&b'/') => end_of_line(bytes, at),
            b'/' if bytes.get(at + 1) == Some(&b'*') => end_of_block(bytes, at, rust),
            b'"' => end_of_quote(bytes, at, b'"'),
            b'r' if rust && !in_word(bytes, at) => end_of_raw(bytes, at).unwrap_or(at),
            b'\'' if rust => end_of_char(text, at),
            b'\'' if !in_word(bytes, at) => end_of_quote(bytes, at, b'\''),
            _ => at,
        };
        for byte in &mut code[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    // Outside of comments, strings and characters Rust and C are ASCII here.
    code.into_iter().map(|b| if b.is_ascii() { char::from(b) } else { '?' }).collect()
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// True where the byte before `at` belongs to the same word (byte strings' `b` excepted).
fn in_word(bytes: &[u8], at: usize) -> bool {
    let prefix =
        at > 0 && matches!(bytes[at - 1], b'b' | b'c') && (at < 2 || !is_word(bytes[at - 2]));
    at > 0 && is_word(bytes[at - 1]) && !prefix
}

fn end_of_line(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|&b| b == b'\n').map_or(bytes.len(), |n| at + n)
}

/// Comments nest in Rust, not in C.
fn end_of_block(bytes: &[u8], start: usize, nested: bool) -> usize {
    let (mut at, mut depth) = (start + 2, 1);
    while at + 1 < bytes.len() && depth > 0 {
        match (bytes[at], bytes[at + 1]) {
            (b'*', b'/') => (at, depth) = (at + 2, depth - 1),
            (b'/', b'*') if nested => (at, depth) = (at + 2, depth + 1),
            _ => at += 1,
        }
    }
    if depth == 0 { at } else { bytes.len() }
}

fn end_of_quote(bytes: &[u8], start: usize, quote: u8) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b if b == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The end of `r"..."` or `r#"..."#`; none where `r` begins no raw string.
fn end_of_raw(bytes: &[u8], start: usize) -> Option<usize> {
    let hashes = bytes[start + 1..].iter().take_while(|&&b| b == b'#').count();
    let open = start + 1 + hashes;
    if bytes.get(open) != Some(&b'"') {
        return None;
    }
    let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let rest = &bytes[open + 1..];
    let length = rest.windows(close.len()).position(|window| window == close);
    Some(length.map_or(bytes.len(), |n| open + 1 + n + close.len()))
}

/// The end of a character; of a lifetime, its apostrophe only.
fn end_of_char(text: &str, start: usize) -> usize {
    let rest = &text[start + 1..];
    if rest.starts_with('\\') {
        return end_of_quote(text.as_bytes(), start, b'\'');
    }
    let Some(c) = rest.chars().next() else { return start };
    let close = start + 1 + c.len_utf8();
    if text[close..].starts_with('\'') { close + 1 } else { start }
}

/// Where `word` stands as a word of its own.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = code.as_bytes();
    code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let after = bytes.get(at + word.len()).copied().unwrap_or(b' ');
        (at == 0 || !is_word(bytes[at - 1])) && !is_word(after)
    })
}

/// The bracket that closes the one at `open`, or the end.
fn closing(code: &str, open: usize, pair: [u8; 2]) -> usize {
    let mut depth = 0;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        if byte == pair[0] {
            depth += 1;
        } else if byte == pair[1] {
            depth -= 1;
            if depth == 0 {
                return at;
            }
        }
    }
    code.len().saturating_sub(1)
}

/// The first of `{` and `;` after `from` that is in no parenthesis or bracket.
fn body_or_end(code: &str, from: usize) -> Option<(usize, u8)> {
    let mut depth = 0;
    for (at, byte) in code.bytes().enumerate().skip(from) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' | b';' if depth == 0 => return Some((at, byte)),
            _ => {}
        }
    }
    None
}

/// Name, start and end of every function with a body.
fn functions(source: &Source) -> Vec<(String, usize, usize)> {
    if source.is_rust() { rust_functions(&source.code) } else { c_functions(&source.code) }
}

fn rust_functions(code: &str) -> Vec<(String, usize, usize)> {
    let name_at = |at: usize| -> String {
        code[at + 2..]
            .trim_start()
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    };
    words(code, "fn")
        .filter(|&at| !name_at(at).is_empty())
        .filter_map(|at| match body_or_end(code, at)? {
            (open, b'{') => Some((name_at(at), at, closing(code, open, [b'{', b'}']))),
            _ => None,
        })
        .collect()
}

/// A brace after a closing parenthesis opens a function's body, unless a word such as `if` stands
/// before the parentheses.
fn c_functions(code: &str) -> Vec<(String, usize, usize)> {
    let mut found = Vec::new();
    let mut parentheses = Vec::new();
    let mut last = (b' ', 0);
    for (at, byte) in code.bytes().enumerate() {
        match byte {
            b'(' => parentheses.push(at),
            b')' => last = (b')', parentheses.pop().unwrap_or(0)),
            b'{' if last.0 == b')' => {
                let before = code[..last.1].trim_end();
                let start = before.bytes().rposition(|b| !is_word(b)).map_or(0, |n| n + 1);
                let name = &before[start..];
                if !name.is_empty() && !NO_FUNCTION.contains(&name) {
                    found.push((name.to_string(), start, closing(code, at, [b'{', b'}'])));
                }
            }
            _ => {}
        }
        if !byte.is_ascii_whitespace() && byte != b')' {
            last = (byte, at);
        }
    }
    found
}

/// The code without the items under `#[cfg(test)]` (also `all(test, ...)`).
fn without_tests(source: &Source) -> String {
    let mut code = source.code.clone();
    if source.path.ends_with("tests.rs") {
        return code.chars().map(|c| if c == '\n' { c } else { ' ' }).collect();
    }
    for mark in ["#[cfg(test)]", "#[cfg(all(test"] {
        while let Some(start) = code.find(mark) {
            let end = match body_or_end(&code, closing(&code, start + 1, [b'[', b']']) + 1) {
                Some((open, b'{')) => closing(&code, open, [b'{', b'}']),
                Some((end, _)) => end,
                None => code.len() - 1,
            };
            let blank: String =
                code[start..=end].chars().map(|c| if c == '\n' { c } else { ' ' }).collect();
            code.replace_range(start..=end, &blank);
        }
    }
    code
}

fn check_size(source: &Source, findings: &mut Vec<String>) {
    let lines = source.text.lines().count();
    if lines > FILE_LINES {
        findings.push(format!("{}: {lines} lines, more than {FILE_LINES}", source.path));
    }
    for (name, start, end) in functions(source) {
        let lines = source.line_of(end) + 1 - source.line_of(start);
        if lines > FUNCTION_LINES {
            let problem = format!("`{name}` has {lines} lines, more than {FUNCTION_LINES}");
            findings.push(source.finding(start, problem));
        }
    }
}

fn check_lines(source: &Source, findings: &mut Vec<String>) {
    for (number, line) in source.text.split('\n').enumerate() {
        let at = |problem: &str| format!("{}:{}: {problem}", source.path, number + 1);
        if line.contains('\t') {
            findings.push(at("a tab"));
        }
        if line.trim_end() != line {
            findings.push(at("blanks at the end of the line"));
        }
    }
    if source.path.starts_with("src/") && source.is_rust() && !source.text.starts_with("//!") {
        findings.push(format!("{}:1: does not begin with //!", source.path));
    }
}

fn check_panics(source: &Source, findings: &mut Vec<String>) {
    if !source.path.starts_with("src/") || !source.is_rust() {
        return;
    }
    let code = without_tests(source);
    for word in ["panic", "todo", "unimplemented", "dbg"] {
        for at in words(&code, word).filter(|at| code[at + word.len()..].starts_with('!')) {
            findings.push(source.finding(at, format!("{word}! outside of tests")));
        }
    }
    for (at, call) in words(&code, "unwrap").map(|at| (at, "unwrap")) {
        if code[..at].trim_end().ends_with('.') && code[at + call.len()..].starts_with("()") {
            findings.push(source.finding(at, ".unwrap() outside of tests"));
        }
    }
    for at in words(&code, "expect").filter(|&at| code[..at].trim_end().ends_with('.')) {
        let Some(argument) = code[at..].strip_prefix("expect(") else { continue };
        let text = source.text[at + "expect(".len()..].trim_start();
        let reason = text.strip_prefix('"').and_then(|text| text.split('"').next());
        if !argument.is_empty() && reason.is_none_or(|reason| reason.split_whitespace().count() < 2)
        {
            findings.push(source.finding(at, ".expect() without a reason in words"));
        }
    }
}

fn check_unsafe(source: &Source, findings: &mut Vec<String>) {
    if !source.is_rust() {
        return;
    }
    let home = UNSAFE_HOMES.iter().any(|home| {
        source.path.strip_prefix(home).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
    });
    for at in words(&source.code, "unsafe") {
        if !home {
            let problem = format!("unsafe outside of {}", UNSAFE_HOMES.join(", "));
            findings.push(source.finding(at, problem));
        }
        let next = source.code[at + "unsafe".len()..].trim_start();
        let asserts = next.starts_with('{') || next.starts_with("impl");
        if asserts && !has_safety_comment(source, source.line_of(at)) {
            findings.push(source.finding(at, "unsafe without a SAFETY comment before it"));
        }
    }
}

/// Whether a comment with "SAFETY:" stands right before the statement at `line`, counted from 1.
fn has_safety_comment(source: &Source, line: usize) -> bool {
    let text: Vec<&str> = source.text.lines().collect();
    let code: Vec<&str> = source.code.lines().collect();
    for before in (0..line - 1).rev() {
        let (whole, bare) = (text[before].trim(), code[before].trim());
        if whole.starts_with("//") {
            if whole.contains("SAFETY:") {
                return true;
            }
        } else if bare.is_empty()
            || (bare.ends_with([';', '{', '}', ',']) && !bare.starts_with('#'))
        {
            return false;
        }
    }
    false
}

fn check(source: &Source) -> Vec<String> {
    let mut findings = Vec::new();
    check_size(source, &mut findings);
    check_lines(source, &mut findings);
    check_panics(source, &mut findings);
    check_unsafe(source, &mut findings);
    findings
}

/// Source files below a folder, in order.
fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut entries: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for path in entries {
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
        if path.is_dir() {
            walk(&path, found);
        } else if extension == "rs" || DEVICE_CODE.contains(&extension) {
            found.push(path);
        }
    }
}

#[test]
fn the_house_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    FOLDERS.iter().for_each(|folder| walk(&root.join(folder), &mut paths));
    assert!(paths.iter().any(|path| path.ends_with("src/lib.rs")), "nothing was found in {root:?}");
    let findings: Vec<String> = paths
        .iter()
        .filter(|path| !GENERATED.iter().any(|generated| path.ends_with(generated)))
        .flat_map(|path| {
            let name = path.strip_prefix(root).expect("below the root").display().to_string();
            let text = fs::read_to_string(path).expect("sources are UTF-8");
            check(&Source::new(&name.replace('\\', "/"), &text))
        })
        .collect();
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}

/// Findings of a file of Rust in src with this text under its heading, which is line 1.
fn in_src(text: &str) -> Vec<String> {
    check(&Source::new("src/data/a.rs", &format!("//! Heading.\n{text}")))
}

#[test]
fn planted_violations_are_found() {
    let long = format!("fn long() {{\n{}}}\n", "    step();\n".repeat(FUNCTION_LINES - 1));
    let kernel = long.replace("fn long()", "__global__ void long_kernel(float* out)");
    let within = format!("mod a {{\n    impl B {{\n{long}    }}\n}}\n");
    for (path, text, finding) in [
        ("src/a.rs", "fn a() {}\n", "src/a.rs:1: does not begin"),
        ("src/a.rs", "//! A.\nfn a() { x.unwrap(); }\n", "src/a.rs:2: .unwrap()"),
        ("src/a.rs", "//! A.\nfn a() {\n    x\n        .unwrap();\n}\n", "src/a.rs:4: .unwrap()"),
        ("src/a.rs", "//! A.\nfn a() { panic!(\"no\") }\n", "src/a.rs:2: panic!"),
        ("src/a.rs", "//! A.\nfn a() { todo!() }\n", "src/a.rs:2: todo!"),
        ("src/a.rs", "//! A.\nfn a() { dbg!(1); }\n", "src/a.rs:2: dbg!"),
        ("src/a.rs", "//! A.\nfn a() { x.expect(\"\"); }\n", "src/a.rs:2: .expect()"),
        ("src/a.rs", "//! A.\nfn a() { x.expect(\"ok\"); }\n", "src/a.rs:2: .expect()"),
        (
            "src/a.rs",
            "//! A.\n#[cfg(test)]\nmod t { }\nfn a() { b.unwrap() }\n",
            "src/a.rs:4: .unwrap()",
        ),
        (
            "src/a.rs",
            "//! A.\n#[cfg(test)]\nmod t;\nfn a() { b.unwrap() }\n",
            "src/a.rs:4: .unwrap()",
        ),
        ("src/a.rs", "//! A.\nlet q = '\"'; x.unwrap(); let r = '\"';\n", "src/a.rs:2: .unwrap()"),
        ("src/a.rs", "//! A.\nlet q = b\"\\\"\"; x.unwrap();\n", "src/a.rs:2: .unwrap()"),
        ("src/a.rs", "//! A.\nfn a<'a>(x: &'a str) { x.unwrap() } // '\n", "src/a.rs:2: .unwrap()"),
        ("src/a.rs", "//! A.\n/* /* */ */ panic!();\n", "src/a.rs:2: panic!"),
        ("src/a.rs", "//! A.\nunsafe fn a() {}\n", "src/a.rs:2: unsafe outside"),
        ("src/capital.rs", "//! A.\nunsafe fn a() {}\n", "src/capital.rs:2: unsafe outside"),
        ("benches/a.rs", "unsafe fn a() {}\n", "benches/a.rs:1: unsafe outside"),
        ("src/capi/a.rs", "//! A.\nlet x = unsafe { y() };\n", "src/capi/a.rs:2: unsafe without"),
        (
            "src/capi.rs",
            "//! A.\n// SAFETY: p lives.\nlet x = unsafe { *p };\nlet y = unsafe { *q };\n",
            "src/capi.rs:4: unsafe without",
        ),
        ("src/backend/gpu/a.rs", "//! A.\nunsafe impl Send for A {}\n", "a.rs:2: unsafe without"),
        ("tests/a.rs", "fn a() {\n\tb();\n}\n", "tests/a.rs:2: a tab"),
        ("kernels/a.cu", "int a; \n", "kernels/a.cu:1: blanks"),
        ("tests/a.rs", &long, "tests/a.rs:1: `long` has 71 lines"),
        ("tests/a.rs", &within, "tests/a.rs:3: `long` has 71 lines"),
        ("kernels/a.cu", &kernel, "kernels/a.cu:1: `long_kernel` has 71 lines"),
        ("benches/a.rs", &"// line\n".repeat(FILE_LINES + 1), "benches/a.rs: 601 lines"),
    ] {
        let findings = check(&Source::new(path, text));
        assert_eq!(findings.len(), 1, "{path}: {text}\n{findings:?}");
        assert!(findings[0].contains(finding), "{finding} is not {findings:?}");
    }
}

#[test]
fn what_only_looks_like_a_violation_is_not_found() {
    let full = format!("fn full() {{\n{}}}\n", "    step();\n".repeat(FUNCTION_LINES - 2));
    let braces = format!(
        "fn a() {{ let x = \"{{{{{{\"; let y = '{{'; let z = r#\"{{\"}}\"#; }} // {{\n{}",
        "static B: u8 = 1;\n".repeat(FUNCTION_LINES)
    );
    for text in [
        "/// `x.unwrap()` and panic!() in words.\nfn a() {}\n",
        "fn a() { let s = \"panic!() \\\" x.unwrap()\"; }\n",
        "fn a() { let s = r#\"todo!() \" x.unwrap()\"#; }\n",
        "fn a() { let s = br\"dbg!()\"; }\n",
        "/* panic!() /* nested */ todo!() */\n",
        "fn a() { x.unwrap_or(0); std::panic::catch_unwind(b); }\n",
        "fn a() { x.expect(\"the header was checked above\"); }\n",
        "fn expect(x: u8) { expect(x) }\n",
        "#[cfg(test)]\nmod tests {\n    fn a() { x.unwrap(); panic!(\"}\") }\n}\n",
        "#[cfg(all(test, unix))]\nmod tests {\n    fn a() { x.unwrap() }\n}\n",
        "#[cfg(test)]\n#[path = \"a_tests.rs\"]\nmod tests;\n",
        "type F = fn(u8) -> u8;\ntrait T {\n    fn a(x: [u8; 2]);\n}\n",
        "#![allow(unsafe_code)]\n",
        &full,
        &braces,
    ] {
        assert_eq!(in_src(text), [] as [String; 0], "{text}");
    }
    for (path, text) in [
        ("src/a_tests.rs", "//! Tests.\nfn a() { x.unwrap(); }\n"),
        ("tests/a.rs", "fn a() { x.unwrap(); panic!(); }\n"),
        ("kernels/a.cu", "void a(int n) {\n  if (n) { b('{', \"{\"); }\n  for (;;) { }\n}\n"),
        (
            "src/capi.rs",
            "//! C.\n// SAFETY: the caller's\n// pointer.\nlet x =\n    unsafe { *p };\n",
        ),
        ("src/capi/a.rs", "//! C.\n// SAFETY: as said.\n#[inline]\nunsafe impl Send for A {}\n"),
        ("src/backend/gpu/a.rs", "//! G.\nunsafe extern \"C\" {\n    fn a();\n}\n"),
    ] {
        let findings = check(&Source::new(path, text));
        assert_eq!(findings, [] as [String; 0], "{path}: {text}");
    }
    let device = Source::new("kernels/a.cu", &full.replace("fn full()", "void full(int n) const"));
    assert_eq!(check(&device), [] as [String; 0]);
}
