//! The HIP runtime as it is found on a machine: which library, and its errors in words.

use std::ffi::{CStr, OsString, c_char, c_int, c_void};
use std::path::Path;
use std::sync::OnceLock;

use super::sys::properties::PropertiesLib;
use super::sys::runtime::HipLib;
use super::sys::{self, hipError_t};
use crate::backend::route::Wishes;
use crate::backend::{Arch, Machine};
use crate::{Error, Result};

/// Names of the runtime, in the order of trying. A distribution's package without its development
/// files has only one with a number.
const NAMES: [&str; 4] =
    ["libamdhip64.so", "libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5"];

/// Bytes given to hipGetDeviceProperties: more than any version's structure has (1472 in ROCm 7).
const PROPERTIES: usize = 8192;

/// An error of this driver; the device is "hip".
pub(super) fn refused(problem: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error::Device { device: "hip".into(), problem: problem.into(), remedy: remedy.into() }
}

/// The runtime, kept open for good: it does not survive being closed.
pub(super) struct Library {
    /// What every version has.
    pub(super) runtime: HipLib,
    properties: PropertiesLib,
    /// As it was opened.
    pub(super) name: String,
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Library").field(&self.name).finish()
    }
}

/// What stood in the way of opening the runtime.
#[derive(Debug, Clone)]
struct Obstacle {
    problem: String,
    remedy: &'static str,
    /// There is no such file.
    missing: bool,
}

/// Opens the runtime once for the process: the file `ENGINE_HIP_LIBRARY`, or the first name found by
/// the system's search, in `ROCM_PATH` or in /opt/rocm.
///
/// # Errors
/// [`Error::Device`]: it is missing, or it is there and does not load.
pub(super) fn open() -> Result<&'static Library> {
    opened().map_err(|o| refused(o.problem.clone(), o.remedy))
}

/// True where no file of the runtime's name was found.
pub(super) fn is_missing() -> bool {
    opened().is_err_and(|obstacle| obstacle.missing)
}

fn opened() -> std::result::Result<&'static Library, &'static Obstacle> {
    static OPENED: OnceLock<std::result::Result<Library, Obstacle>> = OnceLock::new();
    OPENED.get_or_init(find).as_ref()
}

/// Where `names` may lie: by the system's search, then in ROCm's own folders.
pub(super) fn candidates(names: &[&str]) -> Vec<OsString> {
    let rocm = std::env::var_os("ROCM_PATH").unwrap_or_else(|| "/opt/rocm".into());
    let folders = [Path::new(&rocm).join("lib"), Path::new(&rocm).join("lib64")];
    let in_rocm = folders.iter().flat_map(|f| names.iter().map(move |name| f.join(name)));
    let present = in_rocm.filter(|path| path.is_file()).map(Into::into);
    names.iter().map(Into::into).chain(present).collect()
}

fn find() -> std::result::Result<Library, Obstacle> {
    let given = std::env::var_os("ENGINE_HIP_LIBRARY");
    let paths = given.clone().map_or_else(|| candidates(&NAMES), |path| vec![path]);
    let mut broken = None;
    for path in paths {
        match load(&path) {
            Ok(library) => return Ok(library),
            Err(error) => {
                // The loader says so of a name that is nowhere; anything else is about a file.
                let text = error.to_string();
                let missing = text.contains(&format!("{}: cannot open", path.to_string_lossy()));
                if !missing || given.is_some() {
                    broken = broken.or(Some(text));
                }
            }
        }
    }
    Err(match broken {
        Some(problem) if problem.contains("undefined symbol: hip") => Obstacle {
            problem: format!("the HIP runtime is too old: {problem}"),
            remedy: "install ROCm 5.2 or newer (hip-runtime-amd; Debian: libamdhip64-5)",
            missing: false,
        },
        Some(problem) if given.is_some() => Obstacle {
            problem,
            remedy: "let ENGINE_HIP_LIBRARY name the file libamdhip64.so",
            missing: false,
        },
        Some(problem) => Obstacle {
            problem: format!("the HIP runtime does not load: {problem}"),
            remedy: "reinstall ROCm's HIP runtime (hip-runtime-amd, libamdhip64)",
            missing: false,
        },
        None => Obstacle {
            problem: "libamdhip64.so is not on this machine".into(),
            remedy: "install ROCm's HIP runtime (hip-runtime-amd; Debian: libamdhip64-5), or use \
                     --device cpu",
            missing: true,
        },
    })
}

fn load(path: &OsString) -> std::result::Result<Library, libloading::Error> {
    // SAFETY: the library is AMD's runtime, or the emulator's; its initialisers may run at any time.
    // The declarations are those of its headers, made by bindgen.
    unsafe {
        let runtime = HipLib::new(path)?;
        let properties = PropertiesLib::new(path)?;
        Ok(Library { runtime, properties, name: path.to_string_lossy().into_owned() })
    }
}

/// What to do about an error of the runtime.
fn remedy(code: hipError_t) -> &'static str {
    match code as u32 {
        sys::hipErrorOutOfMemory => "close other programs on the card, or take a smaller batch",
        sys::hipErrorNoDevice | sys::hipErrorInvalidDevice => no_device_remedy(),
        sys::hipErrorInsufficientDriver => "update the amdgpu kernel driver to fit this ROCm",
        sys::hipErrorInvalidImage | sys::hipErrorNoBinaryForGpu => {
            "build the program for this card: ENGINE_HIP_ARCHS lists the cards it has kernels for"
        }
        sys::hipErrorInvalidValue | sys::hipErrorLaunchOutOfResources => {
            "the card refused this launch: `--route OP=cpu` takes the op to the CPU"
        }
        sys::hipErrorIllegalAddress | sys::hipErrorLaunchTimeOut | sys::hipErrorLaunchFailure => {
            "the card is lost to this process (`dmesg` may say why): the last checkpoint is intact, \
             go on with `engine train --resume`"
        }
        sys::hipErrorStreamCaptureUnsupported => "ENGINE_HIP_GRAPHS=0 runs steps without graphs",
        _ => "the last checkpoint is intact: go on with `engine train --resume`",
    }
}

/// Why there may be no card: no kernel driver, or no permission to use it.
pub(super) fn no_device_remedy() -> &'static str {
    let driver = super::facts::kernel_driver();
    if !driver.exists() {
        return "/dev/kfd is missing: load the amdgpu kernel driver, or use --device cpu";
    }
    match std::fs::OpenOptions::new().read(true).write(true).open(driver) {
        Err(_) => "/dev/kfd may not be opened: add your user to the groups render and video",
        Ok(_) => "a card may be hidden by HIP_VISIBLE_DEVICES or ROCR_VISIBLE_DEVICES",
    }
}

impl Library {
    /// An error of the runtime, with what it was doing.
    pub(super) fn failed(&self, what: &str, code: hipError_t) -> Error {
        // SAFETY: gives a constant string for any number.
        let name = unsafe { self.runtime.hipGetErrorName(code) };
        let words = if name.is_null() {
            format!("error {code}")
        } else {
            // SAFETY: as above, with a NUL at its end.
            unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
        };
        refused(format!("{what}: {words}"), remedy(code))
    }

    /// Errors for every code but success.
    pub(super) fn check(&self, what: &str, code: hipError_t) -> Result<()> {
        if code == sys::hipSuccess as hipError_t { Ok(()) } else { Err(self.failed(what, code)) }
    }

    /// Number of cards.
    pub(super) fn count(&self) -> Result<usize> {
        let mut count = 0;
        // SAFETY: start the runtime; write one integer.
        unsafe {
            self.check("AMD's driver does not start", self.runtime.hipInit(0))?;
            self.check("counting cards", self.runtime.hipGetDeviceCount(&mut count))?;
        }
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// An attribute of a card.
    pub(super) fn attribute(&self, which: u32, device: c_int) -> Result<u32> {
        let mut value = 0;
        // SAFETY: writes one integer; an unknown attribute or card is an error.
        let code =
            unsafe { self.runtime.hipDeviceGetAttribute(&mut value, which as c_int, device) };
        self.check("a fact about the card", code)?;
        Ok(u32::try_from(value).unwrap_or(0))
    }

    /// The card's name: "AMD Radeon RX 5600 XT".
    pub(super) fn card_name(&self, device: c_int) -> Result<String> {
        let mut name = [0 as c_char; 256];
        let room = name.len() as c_int - 1;
        // SAFETY: writes at most `room` characters; the last stays NUL.
        let code = unsafe { self.runtime.hipDeviceGetName(name.as_mut_ptr(), room, device) };
        self.check("the card's name", code)?;
        Ok(text(bytemuck::cast_slice(&name)))
    }

    /// The card's architecture with its modes: "gfx1010", "gfx90a:sramecc+:xnack-".
    pub(super) fn arch_name(&self, device: c_int) -> Result<String> {
        let mut room = vec![0u64; PROPERTIES / 8];
        let to: *mut c_void = room.as_mut_ptr().cast();
        // ROCm 6 and later export both functions: the one with the older name is for programs
        // compiled before, with their smaller structure.
        let (code, offset) = if self.properties.hipGetDevicePropertiesR0600.is_ok() {
            // SAFETY: the symbol is there; it writes less than PROPERTIES bytes.
            let code = unsafe { self.properties.hipGetDevicePropertiesR0600(to, device) };
            (code, sys::engineArchNameOffsetR0600)
        } else if self.properties.hipGetDeviceProperties.is_ok() {
            // SAFETY: as above.
            let code = unsafe { self.properties.hipGetDeviceProperties(to, device) };
            (code, sys::engineArchNameOffset)
        } else {
            let problem = format!("{} cannot tell a card's architecture", self.name);
            return Err(refused(problem, "install ROCm 5 or newer"));
        };
        self.check("the card's architecture", code)?;
        let bytes: &[u8] = bytemuck::cast_slice(&room);
        let from = offset as usize;
        Ok(text(&bytes[from..from + sys::engineArchNameLength as usize]))
    }

    /// Facts about a card that this thread has chosen.
    pub(super) fn arch(&self, device: c_int) -> Result<Arch> {
        let full = self.arch_name(device)?;
        let name = full.split(':').next().unwrap_or_default().to_string();
        let digits = name.strip_prefix("gfx").and_then(|d| u32::from_str_radix(d, 16).ok());
        let Some(gfx) = digits else {
            let problem = format!("a card of the unknown architecture {full:?}");
            return Err(refused(problem, "use --device cpu"));
        };
        let machine = Machine::Hip { gfx };
        let attribute = |which| self.attribute(which, device);
        let reported = attribute(sys::hipDeviceAttributeMultiprocessorCount)?;
        // From RDNA on the runtime counts pairs of compute units, unless it is told not to.
        let pairs = gfx >= 0x1000
            && std::env::var_os("GPU_ENABLE_WGP_MODE").is_none_or(|value| value != "0");
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two integers; the card was chosen.
        let code = unsafe { self.runtime.hipMemGetInfo(&mut free, &mut total) };
        self.check("the card's memory", code)?;
        let cdna = matches!(gfx, 0x908 | 0x90a | 0x940..=0x950);
        Ok(Arch {
            wave: attribute(sys::hipDeviceAttributeWarpSize)?,
            units: if pairs { 2 * reported } else { reported },
            memory: total as u64,
            shared: attribute(sys::hipDeviceAttributeMaxSharedMemoryPerBlock)?,
            matrix_cores: cdna || gfx >= 0x1100,
            bf16: cdna || gfx >= 0x1100,
            blas: false,
            wishes: Wishes::default(),
            name,
            machine,
        })
    }

    /// The runtime's version: "6.3".
    pub(super) fn version(&self) -> Option<String> {
        let mut version = 0;
        // SAFETY: writes one integer.
        let code = unsafe { self.runtime.hipRuntimeGetVersion(&mut version) };
        // HIP_VERSION: major * 10^7 + minor * 10^5 + patch.
        let words = format!("{}.{}", version / 10_000_000, version / 100_000 % 100);
        (code == sys::hipSuccess as hipError_t).then_some(words)
    }
}

/// Characters up to the first NUL.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|&b| b == 0).next().unwrap_or_default()).into_owned()
}
