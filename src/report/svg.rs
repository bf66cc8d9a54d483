//! Text and shapes of the page: escaping, numbers, a growing SVG, rasters as PNG.

use crc::{CRC_32_ISO_HDLC, Crc};
use std::fmt::Write;

/// Text made safe for element content and for attribute values, well-formed as XML too.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\n' | '\t' => safe.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

/// `value` with so many decimals and a true minus sign.
pub(super) fn fixed(value: f64, decimals: usize) -> String {
    crate::metrics::fixed(value, decimals).replace('-', "\u{2212}")
}

/// `value` with three significant digits, as in 0.0123, 4.10, 137, 2.1e-5.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 {
        return "0".into();
    }
    if !(1e-3..1e6).contains(&size) {
        return power(value);
    }
    fixed(value, (2.0 - size.log10().floor()).clamp(0.0, 6.0) as usize)
}

/// Scientific notation with one decimal unless it is 0, as in 3e-4.
fn power(value: f64) -> String {
    let text = format!("{value:.1e}").replace(".0e", "e");
    text.replace('-', "\u{2212}")
}

/// A count with thin spaces between thousands.
pub(super) fn count(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// Width of `text` at the figures' 12-pixel type, by a wide face: enough to keep labels apart.
pub(super) fn text_width(text: &str) -> f64 {
    text.chars().map(|c| if "il.,|' ".contains(c) { 3.8 } else { 7.4 }).sum()
}

/// An SVG that grows. Colours come from the page's style sheet by class, so that figures follow the
/// reader's light or dark setting.
pub(super) struct Svg {
    width: f64,
    height: f64,
    body: String,
}

impl Svg {
    pub(super) fn new(width: f64, height: f64) -> Self {
        Self { width, height, body: String::new() }
    }

    pub(super) fn line(&mut self, class: &str, from: [f64; 2], to: [f64; 2]) {
        let ([x1, y1], [x2, y2]) = (from, to);
        let _ = writeln!(
            self.body,
            r#"<line class="{class}" x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}"/>"#
        );
    }

    pub(super) fn rect(&mut self, class: &str, at: [f64; 2], size: [f64; 2]) {
        let ([x, y], [w, h]) = (at, size.map(|s| s.max(0.0)));
        let _ = writeln!(
            self.body,
            r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{w:.1}" height="{h:.1}"/>"#
        );
    }

    /// A disc; `title` shows where the reader points at it.
    pub(super) fn circle(&mut self, class: &str, at: [f64; 2], radius: f64, title: Option<&str>) {
        let [x, y] = at;
        let _ =
            write!(self.body, r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="{radius:.1}""#);
        let _ = match title {
            Some(title) => writeln!(self.body, "><title>{}</title></circle>", escape(title)),
            None => writeln!(self.body, "/>"),
        };
    }

    /// A path through `points`; nothing where there are fewer than two.
    pub(super) fn polyline(&mut self, class: &str, points: &[[f64; 2]]) {
        if points.len() > 1 {
            self.path(class, &route(points));
        }
    }

    /// The area between two lines given by ascending x.
    pub(super) fn band(&mut self, class: &str, low: &[[f64; 2]], high: &[[f64; 2]]) {
        if low.len() < 2 || high.len() < 2 {
            return;
        }
        let around: Vec<_> = low.iter().chain(high.iter().rev()).copied().collect();
        self.path(class, &(route(&around) + "Z"));
    }

    pub(super) fn path(&mut self, class: &str, data: &str) {
        let _ = writeln!(self.body, r#"<path class="{class}" d="{data}"/>"#);
    }

    /// Text at its baseline; `class` carries the anchor ("start", "mid", "end") and the look.
    pub(super) fn text(&mut self, class: &str, at: [f64; 2], text: &str) {
        let ([x, y], text) = (at, escape(text));
        let _ = writeln!(self.body, r#"<text class="{class}" x="{x:.1}" y="{y:.1}">{text}</text>"#);
    }

    /// Text reading upwards, centred at `at`.
    pub(super) fn upright_text(&mut self, class: &str, at: [f64; 2], text: &str) {
        let ([x, y], text) = (at, escape(text));
        let _ = writeln!(
            self.body,
            r#"<text class="{class}" transform="translate({x:.1} {y:.1}) rotate(-90)">{text}</text>"#
        );
    }

    /// Markup made by the caller, numbers only.
    pub(super) fn raw(&mut self, markup: &str) {
        self.body.push_str(markup);
        self.body.push('\n');
    }

    /// A raster stretched over a rectangle. `style` is its other attributes.
    pub(super) fn image(&mut self, raster: &Raster<'_>, at: [f64; 2], size: [f64; 2], style: &str) {
        let ([x, y], [w, h]) = (at, size);
        let _ = writeln!(
            self.body,
            r#"<image x="{x:.1}" y="{y:.1}" width="{w:.1}" height="{h:.1}" preserveAspectRatio="none" {style} href="data:image/png;base64,{}"/>"#,
            base64(&raster.png())
        );
    }

    /// The finished element, described as `label` to those who do not see it.
    pub(super) fn finish(self, label: &str) -> String {
        format!(
            "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\" \
             xmlns=\"http://www.w3.org/2000/svg\">\n{}</svg>\n",
            self.width,
            self.height,
            escape(label),
            self.body
        )
    }
}

fn route(points: &[[f64; 2]]) -> String {
    let mut data = String::with_capacity(points.len() * 12);
    for (at, [x, y]) in points.iter().enumerate() {
        let _ = write!(data, "{}{x:.1} {y:.1}", if at == 0 { 'M' } else { 'L' });
    }
    data
}

/// An image of one byte per pixel, `[height, width]`, through a palette of at most 256 colours.
pub(super) struct Raster<'a> {
    pub(super) width: usize,
    pub(super) pixels: &'a [u8],
    pub(super) palette: &'a [[u8; 3]],
}

static CRC32: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

impl Raster<'_> {
    /// PNG (ISO/IEC 15948), its rows stored without compression: these images are small.
    fn png(&self) -> Vec<u8> {
        let height = self.pixels.len() / self.width.max(1);
        let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
        let mut header = Vec::new();
        header.extend((self.width as u32).to_be_bytes());
        header.extend((height as u32).to_be_bytes());
        // 8 bits, palette, deflate, adaptive filters, not interlaced.
        header.extend([8, 3, 0, 0, 0]);
        chunk(b"IHDR", &header, &mut png);
        chunk(b"PLTE", self.palette.as_flattened(), &mut png);
        let mut rows = Vec::with_capacity(self.pixels.len() + height);
        for row in self.pixels.chunks(self.width.max(1)) {
            rows.push(0);
            rows.extend(row);
        }
        chunk(b"IDAT", &zlib_stored(&rows), &mut png);
        chunk(b"IEND", &[], &mut png);
        png
    }
}

fn chunk(kind: &[u8; 4], data: &[u8], png: &mut Vec<u8>) {
    png.extend((data.len() as u32).to_be_bytes());
    let start = png.len();
    png.extend(kind);
    png.extend(data);
    let crc = CRC32.checksum(&png[start..]);
    png.extend(crc.to_be_bytes());
}

/// A zlib stream (RFC 1950) of stored blocks (RFC 1951, 3.2.4).
fn zlib_stored(data: &[u8]) -> Vec<u8> {
    let mut stream = vec![0x78, 0x01];
    let blocks = data.chunks(0xffff);
    let last = blocks.len().saturating_sub(1);
    for (at, block) in blocks.enumerate() {
        let length = block.len() as u16;
        stream.push(u8::from(at == last));
        stream.extend(length.to_le_bytes());
        stream.extend((!length).to_le_bytes());
        stream.extend(block);
    }
    let (mut a, mut b) = (1u32, 0u32);
    for &byte in data {
        a = (a + u32::from(byte)) % 65_521;
        b = (b + a) % 65_521;
    }
    stream.extend((b << 16 | a).to_be_bytes());
    stream
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len() * 4 / 3 + 4);
    for group in bytes.chunks(3) {
        let byte = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let value = (word >> (18 - 6 * digit)) as usize & 63;
            text.push(if digit <= group.len() { DIGITS[value] as char } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_matches_the_rfc() {
        let cases =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")];
        for (plain, encoded) in cases {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

    /// The bytes `zlib.compress(b"Wikipedia", 0)` of Python gives.
    #[test]
    fn zlib_matches_its_oracle() {
        let expected =
            b"\x78\x01\x01\x09\x00\xf6\xff\x57\x69\x6b\x69\x70\x65\x64\x69\x61\x11\xe6\x03\x98";
        assert_eq!(zlib_stored(b"Wikipedia"), expected);
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(number(0.012345), "0.0123");
        assert_eq!(number(-4.1), "\u{2212}4.10");
        assert_eq!(number(136.7), "137");
        assert_eq!(number(2.13e-5), "2.1e\u{2212}5");
        assert_eq!(number(3e-7), "3e\u{2212}7");
        assert_eq!(count(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(count(137), "137");
        assert_eq!(fixed(-0.0004, 2), "0.00");
    }

    #[test]
    fn escaping_leaves_no_markup() {
        assert_eq!(escape("<b a='\"'>&\u{1}"), "&lt;b a=&#39;&quot;&#39;&gt;&amp;\u{fffd}");
    }
}
