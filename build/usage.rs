//! What kernels use, out of the compilers' reports.

/// First line of the table of all kernels, which the tests read.
pub const HEADING: &str = "source\tarch\tkernel\tregisters\tstack\tspills\tshared\n";

/// One kernel.
#[derive(Default)]
pub struct Usage {
    pub kernel: String,
    /// Of a thread: NVIDIA's, or AMD's VGPRs.
    registers: u32,
    /// Bytes of memory of a thread's own.
    stack: u32,
    /// Bytes stored and loaded (NVIDIA), or registers (AMD), for want of registers.
    spills: u32,
    /// Bytes of static shared memory (LDS) of a block.
    shared: u32,
}

impl Usage {
    /// Its columns from the third of [`HEADING`].
    pub fn row(&self) -> String {
        let Self { kernel, registers, stack, spills, shared } = self;
        format!("{kernel}\t{registers}\t{stack}\t{spills}\t{shared}")
    }
}

/// The kernels of a report; None where it has none or has another form. `extension` is the object's.
pub fn parse(text: &str, extension: &str) -> Option<Vec<Usage>> {
    let usages = match extension {
        "cubin" => of_ptxas(text),
        "co" => of_clang(text),
        _ => of_ptx(text),
    }?;
    Some(usages).filter(|usages| !usages.is_empty())
}

/// The number before `words`, as in "0 bytes spill stores".
fn before(line: &str, words: &str) -> Option<u32> {
    line[..line.find(words)?].split_whitespace().next_back()?.parse().ok()
}

/// `ptxas -v`. Functions that are not inlined have properties of their own: they count to the
/// kernel reported with them.
fn of_ptxas(text: &str) -> Option<Vec<Usage>> {
    let mut usages: Vec<Usage> = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let kernel = rest.split('\'').next()?.to_string();
            usages.push(Usage { kernel, ..Usage::default() });
        } else if line.contains("bytes stack frame") {
            let usage = usages.last_mut()?;
            usage.stack += before(line, " bytes stack frame")?;
            usage.spills += before(line, " bytes spill stores")?;
            usage.spills += before(line, " bytes spill loads")?;
        } else if line.contains(": Used ") {
            let usage = usages.last_mut()?;
            usage.registers = before(line, " registers")?;
            usage.shared = before(line, " bytes smem").unwrap_or(0);
        }
    }
    usages.sort_by(|a, b| a.kernel.cmp(&b.kernel));
    Some(usages)
}

/// clang's `-Rpass-analysis=kernel-resource-usage`. Functions that are no kernels are not reported.
fn of_clang(text: &str) -> Option<Vec<Usage>> {
    let mut usages: Vec<Usage> = Vec::new();
    for line in
        text.lines().filter(|line| line.ends_with("[-Rpass-analysis=kernel-resource-usage]"))
    {
        let (name, value) = line.split(": remark:").nth(1)?.trim().split_once(": ")?;
        let value = value.split_whitespace().next()?;
        if name == "Function Name" {
            usages.push(Usage { kernel: value.into(), ..Usage::default() });
            continue;
        }
        let usage = usages.last_mut()?;
        match name {
            "VGPRs" => usage.registers = value.parse().ok()?,
            "ScratchSize [bytes/lane]" => usage.stack = value.parse().ok()?,
            "SGPRs Spill" | "VGPRs Spill" => usage.spills += value.parse::<u32>().ok()?,
            "LDS Size [bytes/block]" => usage.shared = value.parse().ok()?,
            _ => {}
        }
    }
    usages.sort_by(|a, b| a.kernel.cmp(&b.kernel));
    Some(usages)
}

/// The entries of PTX; what they use is known once a driver has compiled them.
fn of_ptx(text: &str) -> Option<Vec<Usage>> {
    let entries = text.lines().filter_map(|line| line.split_once(".entry "));
    let mut names: Vec<&str> = entries.filter_map(|(_, rest)| rest.split('(').next()).collect();
    names.sort_unstable();
    Some(
        names.iter().map(|name| Usage { kernel: name.trim().into(), ..Usage::default() }).collect(),
    )
}
