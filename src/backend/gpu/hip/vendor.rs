//! hipBLAS, opened only where rocBLAS' files for the card were seen: without them rocBLAS ends the
//! process, and nothing can catch that.
//!
//! Never hipBLASLt, which rocBLAS would otherwise take on some cards: `ROCBLAS_USE_HIPBLASLT=0` makes
//! it use Tensile alone (rocBLAS' reference, "Environment variables").

use std::ffi::{OsString, c_int, c_void};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::library::{candidates, refused};
use super::sys::blas::{self as sys, BlasLib, hipblasHandle_t, hipblasStatus_t};
use crate::backend::gpu::blas::{Matrix, Product};
use crate::{DType, Error, Result};

const NAMES: [&str; 5] =
    ["libhipblas.so", "libhipblas.so.3", "libhipblas.so.2", "libhipblas.so.1", "libhipblas.so.0"];

/// A hipBLAS handle on the queue's stream.
pub(super) struct Blas {
    library: BlasLib,
    handle: hipblasHandle_t,
    /// What the types of `hipblasGemmStridedBatchedEx` are numbered by.
    numbering: Numbering,
    /// Where rocBLAS' files for the card lie.
    files: PathBuf,
}

/// hipBLAS' two numberings of element types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Numbering {
    /// hipblasDatatype_t, up to version 2.
    Own,
    /// hipDataType in the function with _v2, of version 2.
    HipV2,
    /// hipDataType, from version 3 on.
    Hip,
}

// SAFETY: the handle is used under the queue's lock, one thread at a time.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

impl std::fmt::Debug for Blas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blas").field("files", &self.files).finish_non_exhaustive()
    }
}

/// The folder with rocBLAS' matrix products for `arch` ("gfx1010"); None where there is none.
///
/// rocBLAS looks in `ROCBLAS_TENSILE_LIBPATH`, else beside its library, for `TensileLibrary_lazy_gfx...`
/// or `TensileLibrary_gfx...`. Kernels.so-*.hsaco is not enough.
pub(super) fn files_for(arch: &str) -> Option<PathBuf> {
    folders().into_iter().find(|folder| holds(folder, arch))
}

/// Where rocBLAS looks.
pub(super) fn folders() -> Vec<PathBuf> {
    let given = std::env::var_os("ROCBLAS_TENSILE_LIBPATH").map(PathBuf::from);
    let rocm = std::env::var_os("ROCM_PATH").unwrap_or_else(|| "/opt/rocm".into());
    let beside = ["lib", "lib64"].map(|lib| Path::new(&rocm).join(lib).join("rocblas/library"));
    let system = ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"];
    let system = system.iter().map(|lib| Path::new(lib).join("rocblas/library"));
    match given {
        Some(folder) => vec![folder],
        None => beside.into_iter().chain(system).collect(),
    }
}

/// What `ROCBLAS_USE_HIPBLASLT` was before this driver set it.
pub(super) fn hipblaslt_wish() -> Option<&'static str> {
    static WISH: OnceLock<Option<String>> = OnceLock::new();
    WISH.get_or_init(|| std::env::var("ROCBLAS_USE_HIPBLASLT").ok()).as_deref()
}

fn holds(folder: &Path, arch: &str) -> bool {
    let starts = [format!("TensileLibrary_lazy_{arch}."), format!("TensileLibrary_{arch}.")];
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.file_name());
    names.map(|n| n.to_string_lossy().into_owned()).any(|n| starts.iter().any(|s| n.starts_with(s)))
}

fn library() -> Option<(BlasLib, bool)> {
    let given = std::env::var_os("ENGINE_HIPBLAS_LIBRARY");
    let paths: Vec<OsString> = given.map_or_else(|| candidates(&NAMES), |path| vec![path]);
    paths.into_iter().find_map(|path| {
        // SAFETY: the library is hipBLAS, or the emulator's.
        let library = unsafe { BlasLib::new(&path) }.ok()?;
        // The name without a number is a link to the one with it.
        let file = fs::canonicalize(&path).map_or(path, Into::into);
        let third = file.to_string_lossy().contains("libhipblas.so.3");
        Some((library, third))
    })
}

impl Blas {
    /// Opens hipBLAS on a stream; None where it, or its files for `arch`, are not there.
    ///
    /// # Errors
    /// [`Error::Device`] where they are there and it does not start.
    pub(super) fn open(arch: &str, stream: *mut c_void) -> Result<Option<Self>> {
        let Some(files) = files_for(arch) else { return Ok(None) };
        if hipblaslt_wish() != Some("0") {
            // SAFETY: cards are opened while the program starts, before it has threads that read the
            // environment without Rust's lock.
            unsafe { std::env::set_var("ROCBLAS_USE_HIPBLASLT", "0") };
        }
        let Some((library, third)) = library() else { return Ok(None) };
        let needed = library.hipblasCreate.is_ok()
            && library.hipblasDestroy.is_ok()
            && library.hipblasSetStream.is_ok()
            && library.hipblasSgemmStridedBatched.is_ok()
            && library.hipblasGemmStridedBatchedEx.is_ok();
        if !needed {
            let remedy = "install ROCm's hipblas of version 5 or newer, or give --gemm native";
            return Err(refused("hipBLAS lacks functions", remedy));
        }
        let numbering = match (library.hipblasGemmStridedBatchedEx_v2.is_ok(), third) {
            (true, _) => Numbering::HipV2,
            (false, true) => Numbering::Hip,
            (false, false) => Numbering::Own,
        };
        let mut handle = std::ptr::null_mut();
        // SAFETY: the symbols were found; the stream is live and outlives the handle.
        unsafe {
            check(library.hipblasCreate(&mut handle))?;
            check(library.hipblasSetStream(handle, stream))?;
        }
        Ok(Some(Self { library, handle, numbering, files }))
    }

    /// Where rocBLAS' files for the card lie.
    pub(super) fn files(&self) -> &Path {
        &self.files
    }

    /// Enqueues a product.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub(super) fn multiply(&self, p: &Product) -> Result<()> {
        let types = [p.a.dtype, p.b.dtype, p.c.dtype];
        if types == [DType::F32; 3] { self.multiply_f32(p) } else { self.multiply_mixed(p) }
    }

    /// The function that is the same in every version.
    fn multiply_f32(&self, p: &Product) -> Result<()> {
        let (one, beta) = (1.0f32, if p.accumulate { 1.0f32 } else { 0.0 });
        // SAFETY: a live handle; operands are live memory with the extents the op was checked for;
        // alpha and beta are read before the call returns (pointer mode host, the default).
        check(unsafe {
            self.library.hipblasSgemmStridedBatched(
                self.handle,
                operation(&p.a),
                operation(&p.b),
                size(p.rows),
                size(p.cols),
                size(p.inner),
                &one,
                p.a.address as *const f32,
                size(p.a.stride),
                p.a.batch_stride as i64,
                p.b.address as *const f32,
                size(p.b.stride),
                p.b.batch_stride as i64,
                &beta,
                p.c.address as *mut f32,
                size(p.c.stride),
                p.c.batch_stride as i64,
                size(p.batch),
            )
        })
    }

    fn multiply_mixed(&self, p: &Product) -> Result<()> {
        let (one, beta) = (1.0f32, if p.accumulate { 1.0f32 } else { 0.0 });
        let function = match self.numbering {
            Numbering::HipV2 => &self.library.hipblasGemmStridedBatchedEx_v2,
            _ => &self.library.hipblasGemmStridedBatchedEx,
        };
        let Ok(function) = function else {
            return Err(refused("hipBLAS lacks a function", "give --gemm native"));
        };
        let number = |m: &Matrix| number(m.dtype, self.numbering);
        let compute = match self.numbering {
            Numbering::Own => sys::HIPBLAS_R_32F,
            _ => sys::HIPBLAS_COMPUTE_32F,
        };
        // SAFETY: as in `multiply_f32`.
        check(unsafe {
            function(
                self.handle,
                operation(&p.a),
                operation(&p.b),
                size(p.rows),
                size(p.cols),
                size(p.inner),
                std::ptr::from_ref(&one).cast(),
                p.a.address as *const c_void,
                number(&p.a),
                size(p.a.stride),
                p.a.batch_stride as i64,
                p.b.address as *const c_void,
                number(&p.b),
                size(p.b.stride),
                p.b.batch_stride as i64,
                std::ptr::from_ref(&beta).cast(),
                p.c.address as *mut c_void,
                number(&p.c),
                size(p.c.stride),
                p.c.batch_stride as i64,
                size(p.batch),
                compute as c_int,
                sys::HIPBLAS_GEMM_DEFAULT as c_int,
            )
        })
    }

    /// Gives the handle back; it is not used after.
    pub(super) fn close(&mut self) {
        // SAFETY: a live handle, once.
        unsafe { self.library.hipblasDestroy(self.handle) };
    }
}

fn operation(m: &Matrix) -> c_int {
    (if m.transposed { sys::HIPBLAS_OP_T } else { sys::HIPBLAS_OP_N }) as c_int
}

fn size(n: usize) -> c_int {
    c_int::try_from(n).unwrap_or(c_int::MAX)
}

fn number(dtype: DType, numbering: Numbering) -> c_int {
    let number = match (numbering, dtype) {
        (Numbering::Own, DType::Bf16) => sys::HIPBLAS_R_16B,
        (Numbering::Own, DType::F16) => sys::HIPBLAS_R_16F,
        (Numbering::Own, _) => sys::HIPBLAS_R_32F,
        (_, DType::Bf16) => sys::HIP_R_16BF,
        (_, DType::F16) => sys::HIP_R_16F,
        _ => sys::HIP_R_32F,
    };
    number as c_int
}

fn check(status: hipblasStatus_t) -> Result<(), Error> {
    if status == sys::HIPBLAS_STATUS_SUCCESS as hipblasStatus_t {
        return Ok(());
    }
    Err(refused(format!("hipBLAS: status {status}"), "give --gemm native"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_for_the_card_count() {
        let folder = tempfile::tempdir().expect("a folder");
        let touch = |name: &str| fs::write(folder.path().join(name), b"x").expect("writes");
        touch("Kernels.so-000-gfx1010.hsaco");
        touch("TensileLibrary_lazy_gfx1030.dat");
        touch("TensileLibrary.dat");
        assert!(!holds(folder.path(), "gfx1010"));
        assert!(holds(folder.path(), "gfx1030"));
        assert!(!holds(folder.path(), "gfx103"));
        touch("TensileLibrary_gfx1010.dat");
        assert!(holds(folder.path(), "gfx1010"));
    }

    #[test]
    fn each_numbering_has_its_numbers() {
        assert_eq!(number(DType::Bf16, Numbering::Own), 168);
        assert_eq!(number(DType::F16, Numbering::Own), 150);
        assert_eq!(number(DType::F32, Numbering::Hip), 0);
        assert_eq!(number(DType::Bf16, Numbering::HipV2), 14);
    }
}
