//! Declarations of HIP and hipBLAS, made by bindgen from engine_hip.h and engine_hipblas.h
//! (tests/hip_sys.rs). Do not edit: ENGINE_UPDATE_SYS=1 cargo test --test hip_sys
pub type hipError_t = ::std::os::raw::c_int;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ihipStream_t {
    _unused: [u8; 0],
}
pub type hipStream_t = *mut ihipStream_t;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ihipEvent_t {
    _unused: [u8; 0],
}
pub type hipEvent_t = *mut ihipEvent_t;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ihipModule_t {
    _unused: [u8; 0],
}
pub type hipModule_t = *mut ihipModule_t;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ihipModuleSymbol_t {
    _unused: [u8; 0],
}
pub type hipFunction_t = *mut ihipModuleSymbol_t;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ihipGraph {
    _unused: [u8; 0],
}
pub type hipGraph_t = *mut ihipGraph;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct hipGraphNode {
    _unused: [u8; 0],
}
pub type hipGraphNode_t = *mut hipGraphNode;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct hipGraphExec {
    _unused: [u8; 0],
}
pub type hipGraphExec_t = *mut hipGraphExec;
pub const hipSuccess: _bindgen_ty_1 = 0;
pub const hipErrorInvalidValue: _bindgen_ty_1 = 1;
pub const hipErrorOutOfMemory: _bindgen_ty_1 = 2;
pub const hipErrorNotInitialized: _bindgen_ty_1 = 3;
pub const hipErrorInsufficientDriver: _bindgen_ty_1 = 35;
pub const hipErrorNoDevice: _bindgen_ty_1 = 100;
pub const hipErrorInvalidDevice: _bindgen_ty_1 = 101;
pub const hipErrorInvalidImage: _bindgen_ty_1 = 200;
pub const hipErrorNoBinaryForGpu: _bindgen_ty_1 = 209;
pub const hipErrorInvalidHandle: _bindgen_ty_1 = 400;
pub const hipErrorNotFound: _bindgen_ty_1 = 500;
pub const hipErrorIllegalAddress: _bindgen_ty_1 = 700;
pub const hipErrorLaunchOutOfResources: _bindgen_ty_1 = 701;
pub const hipErrorLaunchTimeOut: _bindgen_ty_1 = 702;
pub const hipErrorLaunchFailure: _bindgen_ty_1 = 719;
pub const hipErrorNotSupported: _bindgen_ty_1 = 801;
pub const hipErrorStreamCaptureUnsupported: _bindgen_ty_1 = 900;
pub type _bindgen_ty_1 = ::std::os::raw::c_uint;
pub const hipDeviceAttributeClockRate: _bindgen_ty_2 = 5;
pub const hipDeviceAttributeL2CacheSize: _bindgen_ty_2 = 19;
pub const hipDeviceAttributeMaxThreadsPerBlock: _bindgen_ty_2 = 56;
pub const hipDeviceAttributeMemoryBusWidth: _bindgen_ty_2 = 59;
pub const hipDeviceAttributeMemoryClockRate: _bindgen_ty_2 = 60;
pub const hipDeviceAttributeMultiprocessorCount: _bindgen_ty_2 = 63;
pub const hipDeviceAttributeMaxSharedMemoryPerBlock: _bindgen_ty_2 = 74;
pub const hipDeviceAttributeWarpSize: _bindgen_ty_2 = 87;
pub type _bindgen_ty_2 = ::std::os::raw::c_uint;
pub const engineArchNameOffset: _bindgen_ty_3 = 396;
pub const engineArchNameOffsetR0600: _bindgen_ty_3 = 1160;
pub const engineArchNameLength: _bindgen_ty_3 = 256;
pub type _bindgen_ty_3 = ::std::os::raw::c_uint;
pub const hipStreamNonBlocking: _bindgen_ty_4 = 1;
pub const hipEventDisableTiming: _bindgen_ty_4 = 2;
pub const hipHostMallocDefault: _bindgen_ty_4 = 0;
pub type _bindgen_ty_4 = ::std::os::raw::c_uint;
pub const hipMemcpyHostToDevice: _bindgen_ty_5 = 1;
pub const hipMemcpyDeviceToHost: _bindgen_ty_5 = 2;
pub const hipMemcpyDeviceToDevice: _bindgen_ty_5 = 3;
pub type _bindgen_ty_5 = ::std::os::raw::c_uint;
pub const hipStreamCaptureModeThreadLocal: _bindgen_ty_6 = 1;
pub type _bindgen_ty_6 = ::std::os::raw::c_uint;

/// What every version has.
pub mod runtime {
use super::*;

pub struct HipLib {
    __library: ::libloading::Library,
    pub hipInit: unsafe extern "C" fn(flags: ::std::os::raw::c_uint) -> hipError_t,
    pub hipDriverGetVersion: unsafe extern "C" fn(
        version: *mut ::std::os::raw::c_int,
    ) -> hipError_t,
    pub hipRuntimeGetVersion: unsafe extern "C" fn(
        version: *mut ::std::os::raw::c_int,
    ) -> hipError_t,
    pub hipGetErrorName: unsafe extern "C" fn(
        error: hipError_t,
    ) -> *const ::std::os::raw::c_char,
    pub hipGetErrorString: unsafe extern "C" fn(
        error: hipError_t,
    ) -> *const ::std::os::raw::c_char,
    pub hipGetDeviceCount: unsafe extern "C" fn(
        count: *mut ::std::os::raw::c_int,
    ) -> hipError_t,
    pub hipSetDevice: unsafe extern "C" fn(device: ::std::os::raw::c_int) -> hipError_t,
    pub hipDeviceGetName: unsafe extern "C" fn(
        name: *mut ::std::os::raw::c_char,
        length: ::std::os::raw::c_int,
        device: ::std::os::raw::c_int,
    ) -> hipError_t,
    pub hipDeviceGetAttribute: unsafe extern "C" fn(
        value: *mut ::std::os::raw::c_int,
        attribute: ::std::os::raw::c_int,
        device: ::std::os::raw::c_int,
    ) -> hipError_t,
    pub hipDeviceSynchronize: unsafe extern "C" fn() -> hipError_t,
    pub hipMemGetInfo: unsafe extern "C" fn(
        free: *mut usize,
        total: *mut usize,
    ) -> hipError_t,
    pub hipMalloc: unsafe extern "C" fn(
        address: *mut *mut ::std::os::raw::c_void,
        bytes: usize,
    ) -> hipError_t,
    pub hipFree: unsafe extern "C" fn(
        address: *mut ::std::os::raw::c_void,
    ) -> hipError_t,
    pub hipHostMalloc: unsafe extern "C" fn(
        address: *mut *mut ::std::os::raw::c_void,
        bytes: usize,
        flags: ::std::os::raw::c_uint,
    ) -> hipError_t,
    pub hipHostFree: unsafe extern "C" fn(
        address: *mut ::std::os::raw::c_void,
    ) -> hipError_t,
    pub hipMemcpyAsync: unsafe extern "C" fn(
        to: *mut ::std::os::raw::c_void,
        from: *const ::std::os::raw::c_void,
        bytes: usize,
        kind: ::std::os::raw::c_int,
        stream: hipStream_t,
    ) -> hipError_t,
    pub hipMemsetAsync: unsafe extern "C" fn(
        to: *mut ::std::os::raw::c_void,
        byte: ::std::os::raw::c_int,
        bytes: usize,
        stream: hipStream_t,
    ) -> hipError_t,
    pub hipStreamCreateWithFlags: unsafe extern "C" fn(
        stream: *mut hipStream_t,
        flags: ::std::os::raw::c_uint,
    ) -> hipError_t,
    pub hipStreamDestroy: unsafe extern "C" fn(stream: hipStream_t) -> hipError_t,
    pub hipStreamSynchronize: unsafe extern "C" fn(stream: hipStream_t) -> hipError_t,
    pub hipStreamWaitEvent: unsafe extern "C" fn(
        stream: hipStream_t,
        event: hipEvent_t,
        flags: ::std::os::raw::c_uint,
    ) -> hipError_t,
    pub hipEventCreateWithFlags: unsafe extern "C" fn(
        event: *mut hipEvent_t,
        flags: ::std::os::raw::c_uint,
    ) -> hipError_t,
    pub hipEventDestroy: unsafe extern "C" fn(event: hipEvent_t) -> hipError_t,
    pub hipEventRecord: unsafe extern "C" fn(
        event: hipEvent_t,
        stream: hipStream_t,
    ) -> hipError_t,
    pub hipEventSynchronize: unsafe extern "C" fn(event: hipEvent_t) -> hipError_t,
    pub hipEventElapsedTime: unsafe extern "C" fn(
        milliseconds: *mut f32,
        from: hipEvent_t,
        to: hipEvent_t,
    ) -> hipError_t,
    pub hipModuleLoadData: unsafe extern "C" fn(
        module: *mut hipModule_t,
        image: *const ::std::os::raw::c_void,
    ) -> hipError_t,
    pub hipModuleUnload: unsafe extern "C" fn(module: hipModule_t) -> hipError_t,
    pub hipModuleGetFunction: unsafe extern "C" fn(
        function: *mut hipFunction_t,
        module: hipModule_t,
        name: *const ::std::os::raw::c_char,
    ) -> hipError_t,
    pub hipModuleLaunchKernel: unsafe extern "C" fn(
        function: hipFunction_t,
        grid_x: ::std::os::raw::c_uint,
        grid_y: ::std::os::raw::c_uint,
        grid_z: ::std::os::raw::c_uint,
        block_x: ::std::os::raw::c_uint,
        block_y: ::std::os::raw::c_uint,
        block_z: ::std::os::raw::c_uint,
        shared: ::std::os::raw::c_uint,
        stream: hipStream_t,
        params: *mut *mut ::std::os::raw::c_void,
        extra: *mut *mut ::std::os::raw::c_void,
    ) -> hipError_t,
    pub hipStreamBeginCapture: unsafe extern "C" fn(
        stream: hipStream_t,
        mode: ::std::os::raw::c_int,
    ) -> hipError_t,
    pub hipStreamEndCapture: unsafe extern "C" fn(
        stream: hipStream_t,
        graph: *mut hipGraph_t,
    ) -> hipError_t,
    pub hipGraphInstantiate: unsafe extern "C" fn(
        exec: *mut hipGraphExec_t,
        graph: hipGraph_t,
        failed: *mut hipGraphNode_t,
        log: *mut ::std::os::raw::c_char,
        log_bytes: usize,
    ) -> hipError_t,
    pub hipGraphLaunch: unsafe extern "C" fn(
        exec: hipGraphExec_t,
        stream: hipStream_t,
    ) -> hipError_t,
    pub hipGraphExecDestroy: unsafe extern "C" fn(exec: hipGraphExec_t) -> hipError_t,
    pub hipGraphDestroy: unsafe extern "C" fn(graph: hipGraph_t) -> hipError_t,
}
impl HipLib {
    pub unsafe fn new<P>(path: P) -> Result<Self, ::libloading::Error>
    where
        P: AsRef<::std::ffi::OsStr>,
    {
        let library = ::libloading::Library::new(path)?;
        Self::from_library(library)
    }
    pub unsafe fn from_library<L>(library: L) -> Result<Self, ::libloading::Error>
    where
        L: Into<::libloading::Library>,
    {
        let __library = library.into();
        let hipInit = __library.get(b"hipInit\0").map(|sym| *sym)?;
        let hipDriverGetVersion = __library
            .get(b"hipDriverGetVersion\0")
            .map(|sym| *sym)?;
        let hipRuntimeGetVersion = __library
            .get(b"hipRuntimeGetVersion\0")
            .map(|sym| *sym)?;
        let hipGetErrorName = __library.get(b"hipGetErrorName\0").map(|sym| *sym)?;
        let hipGetErrorString = __library.get(b"hipGetErrorString\0").map(|sym| *sym)?;
        let hipGetDeviceCount = __library.get(b"hipGetDeviceCount\0").map(|sym| *sym)?;
        let hipSetDevice = __library.get(b"hipSetDevice\0").map(|sym| *sym)?;
        let hipDeviceGetName = __library.get(b"hipDeviceGetName\0").map(|sym| *sym)?;
        let hipDeviceGetAttribute = __library
            .get(b"hipDeviceGetAttribute\0")
            .map(|sym| *sym)?;
        let hipDeviceSynchronize = __library
            .get(b"hipDeviceSynchronize\0")
            .map(|sym| *sym)?;
        let hipMemGetInfo = __library.get(b"hipMemGetInfo\0").map(|sym| *sym)?;
        let hipMalloc = __library.get(b"hipMalloc\0").map(|sym| *sym)?;
        let hipFree = __library.get(b"hipFree\0").map(|sym| *sym)?;
        let hipHostMalloc = __library.get(b"hipHostMalloc\0").map(|sym| *sym)?;
        let hipHostFree = __library.get(b"hipHostFree\0").map(|sym| *sym)?;
        let hipMemcpyAsync = __library.get(b"hipMemcpyAsync\0").map(|sym| *sym)?;
        let hipMemsetAsync = __library.get(b"hipMemsetAsync\0").map(|sym| *sym)?;
        let hipStreamCreateWithFlags = __library
            .get(b"hipStreamCreateWithFlags\0")
            .map(|sym| *sym)?;
        let hipStreamDestroy = __library.get(b"hipStreamDestroy\0").map(|sym| *sym)?;
        let hipStreamSynchronize = __library
            .get(b"hipStreamSynchronize\0")
            .map(|sym| *sym)?;
        let hipStreamWaitEvent = __library.get(b"hipStreamWaitEvent\0").map(|sym| *sym)?;
        let hipEventCreateWithFlags = __library
            .get(b"hipEventCreateWithFlags\0")
            .map(|sym| *sym)?;
        let hipEventDestroy = __library.get(b"hipEventDestroy\0").map(|sym| *sym)?;
        let hipEventRecord = __library.get(b"hipEventRecord\0").map(|sym| *sym)?;
        let hipEventSynchronize = __library
            .get(b"hipEventSynchronize\0")
            .map(|sym| *sym)?;
        let hipEventElapsedTime = __library
            .get(b"hipEventElapsedTime\0")
            .map(|sym| *sym)?;
        let hipModuleLoadData = __library.get(b"hipModuleLoadData\0").map(|sym| *sym)?;
        let hipModuleUnload = __library.get(b"hipModuleUnload\0").map(|sym| *sym)?;
        let hipModuleGetFunction = __library
            .get(b"hipModuleGetFunction\0")
            .map(|sym| *sym)?;
        let hipModuleLaunchKernel = __library
            .get(b"hipModuleLaunchKernel\0")
            .map(|sym| *sym)?;
        let hipStreamBeginCapture = __library
            .get(b"hipStreamBeginCapture\0")
            .map(|sym| *sym)?;
        let hipStreamEndCapture = __library
            .get(b"hipStreamEndCapture\0")
            .map(|sym| *sym)?;
        let hipGraphInstantiate = __library
            .get(b"hipGraphInstantiate\0")
            .map(|sym| *sym)?;
        let hipGraphLaunch = __library.get(b"hipGraphLaunch\0").map(|sym| *sym)?;
        let hipGraphExecDestroy = __library
            .get(b"hipGraphExecDestroy\0")
            .map(|sym| *sym)?;
        let hipGraphDestroy = __library.get(b"hipGraphDestroy\0").map(|sym| *sym)?;
        Ok(HipLib {
            __library,
            hipInit,
            hipDriverGetVersion,
            hipRuntimeGetVersion,
            hipGetErrorName,
            hipGetErrorString,
            hipGetDeviceCount,
            hipSetDevice,
            hipDeviceGetName,
            hipDeviceGetAttribute,
            hipDeviceSynchronize,
            hipMemGetInfo,
            hipMalloc,
            hipFree,
            hipHostMalloc,
            hipHostFree,
            hipMemcpyAsync,
            hipMemsetAsync,
            hipStreamCreateWithFlags,
            hipStreamDestroy,
            hipStreamSynchronize,
            hipStreamWaitEvent,
            hipEventCreateWithFlags,
            hipEventDestroy,
            hipEventRecord,
            hipEventSynchronize,
            hipEventElapsedTime,
            hipModuleLoadData,
            hipModuleUnload,
            hipModuleGetFunction,
            hipModuleLaunchKernel,
            hipStreamBeginCapture,
            hipStreamEndCapture,
            hipGraphInstantiate,
            hipGraphLaunch,
            hipGraphExecDestroy,
            hipGraphDestroy,
        })
    }
    pub unsafe fn hipInit(&self, flags: ::std::os::raw::c_uint) -> hipError_t {
        (self.hipInit)(flags)
    }
    pub unsafe fn hipDriverGetVersion(
        &self,
        version: *mut ::std::os::raw::c_int,
    ) -> hipError_t {
        (self.hipDriverGetVersion)(version)
    }
    pub unsafe fn hipRuntimeGetVersion(
        &self,
        version: *mut ::std::os::raw::c_int,
    ) -> hipError_t {
        (self.hipRuntimeGetVersion)(version)
    }
    pub unsafe fn hipGetErrorName(
        &self,
        error: hipError_t,
    ) -> *const ::std::os::raw::c_char {
        (self.hipGetErrorName)(error)
    }
    pub unsafe fn hipGetErrorString(
        &self,
        error: hipError_t,
    ) -> *const ::std::os::raw::c_char {
        (self.hipGetErrorString)(error)
    }
    pub unsafe fn hipGetDeviceCount(
        &self,
        count: *mut ::std::os::raw::c_int,
    ) -> hipError_t {
        (self.hipGetDeviceCount)(count)
    }
    pub unsafe fn hipSetDevice(&self, device: ::std::os::raw::c_int) -> hipError_t {
        (self.hipSetDevice)(device)
    }
    pub unsafe fn hipDeviceGetName(
        &self,
        name: *mut ::std::os::raw::c_char,
        length: ::std::os::raw::c_int,
        device: ::std::os::raw::c_int,
    ) -> hipError_t {
        (self.hipDeviceGetName)(name, length, device)
    }
    pub unsafe fn hipDeviceGetAttribute(
        &self,
        value: *mut ::std::os::raw::c_int,
        attribute: ::std::os::raw::c_int,
        device: ::std::os::raw::c_int,
    ) -> hipError_t {
        (self.hipDeviceGetAttribute)(value, attribute, device)
    }
    pub unsafe fn hipDeviceSynchronize(&self) -> hipError_t {
        (self.hipDeviceSynchronize)()
    }
    pub unsafe fn hipMemGetInfo(
        &self,
        free: *mut usize,
        total: *mut usize,
    ) -> hipError_t {
        (self.hipMemGetInfo)(free, total)
    }
    pub unsafe fn hipMalloc(
        &self,
        address: *mut *mut ::std::os::raw::c_void,
        bytes: usize,
    ) -> hipError_t {
        (self.hipMalloc)(address, bytes)
    }
    pub unsafe fn hipFree(&self, address: *mut ::std::os::raw::c_void) -> hipError_t {
        (self.hipFree)(address)
    }
    pub unsafe fn hipHostMalloc(
        &self,
        address: *mut *mut ::std::os::raw::c_void,
        bytes: usize,
        flags: ::std::os::raw::c_uint,
    ) -> hipError_t {
        (self.hipHostMalloc)(address, bytes, flags)
    }
    pub unsafe fn hipHostFree(
        &self,
        address: *mut ::std::os::raw::c_void,
    ) -> hipError_t {
        (self.hipHostFree)(address)
    }
    pub unsafe fn hipMemcpyAsync(
        &self,
        to: *mut ::std::os::raw::c_void,
        from: *const ::std::os::raw::c_void,
        bytes: usize,
        kind: ::std::os::raw::c_int,
        stream: hipStream_t,
    ) -> hipError_t {
        (self.hipMemcpyAsync)(to, from, bytes, kind, stream)
    }
    pub unsafe fn hipMemsetAsync(
        &self,
        to: *mut ::std::os::raw::c_void,
        byte: ::std::os::raw::c_int,
        bytes: usize,
        stream: hipStream_t,
    ) -> hipError_t {
        (self.hipMemsetAsync)(to, byte, bytes, stream)
    }
    pub unsafe fn hipStreamCreateWithFlags(
        &self,
        stream: *mut hipStream_t,
        flags: ::std::os::raw::c_uint,
    ) -> hipError_t {
        (self.hipStreamCreateWithFlags)(stream, flags)
    }
    pub unsafe fn hipStreamDestroy(&self, stream: hipStream_t) -> hipError_t {
        (self.hipStreamDestroy)(stream)
    }
    pub unsafe fn hipStreamSynchronize(&self, stream: hipStream_t) -> hipError_t {
        (self.hipStreamSynchronize)(stream)
    }
    pub unsafe fn hipStreamWaitEvent(
        &self,
        stream: hipStream_t,
        event: hipEvent_t,
        flags: ::std::os::raw::c_uint,
    ) -> hipError_t {
        (self.hipStreamWaitEvent)(stream, event, flags)
    }
    pub unsafe fn hipEventCreateWithFlags(
        &self,
        event: *mut hipEvent_t,
        flags: ::std::os::raw::c_uint,
    ) -> hipError_t {
        (self.hipEventCreateWithFlags)(event, flags)
    }
    pub unsafe fn hipEventDestroy(&self, event: hipEvent_t) -> hipError_t {
        (self.hipEventDestroy)(event)
    }
    pub unsafe fn hipEventRecord(
        &self,
        event: hipEvent_t,
        stream: hipStream_t,
    ) -> hipError_t {
        (self.hipEventRecord)(event, stream)
    }
    pub unsafe fn hipEventSynchronize(&self, event: hipEvent_t) -> hipError_t {
        (self.hipEventSynchronize)(event)
    }
    pub unsafe fn hipEventElapsedTime(
        &self,
        milliseconds: *mut f32,
        from: hipEvent_t,
        to: hipEvent_t,
    ) -> hipError_t {
        (self.hipEventElapsedTime)(milliseconds, from, to)
    }
    pub unsafe fn hipModuleLoadData(
        &self,
        module: *mut hipModule_t,
        image: *const ::std::os::raw::c_void,
    ) -> hipError_t {
        (self.hipModuleLoadData)(module, image)
    }
    pub unsafe fn hipModuleUnload(&self, module: hipModule_t) -> hipError_t {
        (self.hipModuleUnload)(module)
    }
    pub unsafe fn hipModuleGetFunction(
        &self,
        function: *mut hipFunction_t,
        module: hipModule_t,
        name: *const ::std::os::raw::c_char,
    ) -> hipError_t {
        (self.hipModuleGetFunction)(function, module, name)
    }
    pub unsafe fn hipModuleLaunchKernel(
        &self,
        function: hipFunction_t,
        grid_x: ::std::os::raw::c_uint,
        grid_y: ::std::os::raw::c_uint,
        grid_z: ::std::os::raw::c_uint,
        block_x: ::std::os::raw::c_uint,
        block_y: ::std::os::raw::c_uint,
        block_z: ::std::os::raw::c_uint,
        shared: ::std::os::raw::c_uint,
        stream: hipStream_t,
        params: *mut *mut ::std::os::raw::c_void,
        extra: *mut *mut ::std::os::raw::c_void,
    ) -> hipError_t {
        (self
            .hipModuleLaunchKernel)(
            function,
            grid_x,
            grid_y,
            grid_z,
            block_x,
            block_y,
            block_z,
            shared,
            stream,
            params,
            extra,
        )
    }
    pub unsafe fn hipStreamBeginCapture(
        &self,
        stream: hipStream_t,
        mode: ::std::os::raw::c_int,
    ) -> hipError_t {
        (self.hipStreamBeginCapture)(stream, mode)
    }
    pub unsafe fn hipStreamEndCapture(
        &self,
        stream: hipStream_t,
        graph: *mut hipGraph_t,
    ) -> hipError_t {
        (self.hipStreamEndCapture)(stream, graph)
    }
    pub unsafe fn hipGraphInstantiate(
        &self,
        exec: *mut hipGraphExec_t,
        graph: hipGraph_t,
        failed: *mut hipGraphNode_t,
        log: *mut ::std::os::raw::c_char,
        log_bytes: usize,
    ) -> hipError_t {
        (self.hipGraphInstantiate)(exec, graph, failed, log, log_bytes)
    }
    pub unsafe fn hipGraphLaunch(
        &self,
        exec: hipGraphExec_t,
        stream: hipStream_t,
    ) -> hipError_t {
        (self.hipGraphLaunch)(exec, stream)
    }
    pub unsafe fn hipGraphExecDestroy(&self, exec: hipGraphExec_t) -> hipError_t {
        (self.hipGraphExecDestroy)(exec)
    }
    pub unsafe fn hipGraphDestroy(&self, graph: hipGraph_t) -> hipError_t {
        (self.hipGraphDestroy)(graph)
    }
}
}
/// What one version has or another.
pub mod properties {
use super::*;

pub struct PropertiesLib {
    __library: ::libloading::Library,
    pub hipGetDeviceProperties: Result<
        unsafe extern "C" fn(
            properties: *mut ::std::os::raw::c_void,
            device: ::std::os::raw::c_int,
        ) -> hipError_t,
        ::libloading::Error,
    >,
    pub hipGetDevicePropertiesR0600: Result<
        unsafe extern "C" fn(
            properties: *mut ::std::os::raw::c_void,
            device: ::std::os::raw::c_int,
        ) -> hipError_t,
        ::libloading::Error,
    >,
}
impl PropertiesLib {
    pub unsafe fn new<P>(path: P) -> Result<Self, ::libloading::Error>
    where
        P: AsRef<::std::ffi::OsStr>,
    {
        let library = ::libloading::Library::new(path)?;
        Self::from_library(library)
    }
    pub unsafe fn from_library<L>(library: L) -> Result<Self, ::libloading::Error>
    where
        L: Into<::libloading::Library>,
    {
        let __library = library.into();
        let hipGetDeviceProperties = __library
            .get(b"hipGetDeviceProperties\0")
            .map(|sym| *sym);
        let hipGetDevicePropertiesR0600 = __library
            .get(b"hipGetDevicePropertiesR0600\0")
            .map(|sym| *sym);
        Ok(PropertiesLib {
            __library,
            hipGetDeviceProperties,
            hipGetDevicePropertiesR0600,
        })
    }
    pub unsafe fn hipGetDeviceProperties(
        &self,
        properties: *mut ::std::os::raw::c_void,
        device: ::std::os::raw::c_int,
    ) -> hipError_t {
        (self
            .hipGetDeviceProperties
            .as_ref()
            .expect("Expected function, got error."))(properties, device)
    }
    pub unsafe fn hipGetDevicePropertiesR0600(
        &self,
        properties: *mut ::std::os::raw::c_void,
        device: ::std::os::raw::c_int,
    ) -> hipError_t {
        (self
            .hipGetDevicePropertiesR0600
            .as_ref()
            .expect("Expected function, got error."))(properties, device)
    }
}
}
/// hipBLAS; its functions differ between versions too.
pub mod blas {
pub type wchar_t = ::std::os::raw::c_int;
#[repr(C)]
#[repr(align(16))]
#[derive(Debug, Copy, Clone)]
pub struct max_align_t {
    pub __clang_max_align_nonce1: ::std::os::raw::c_longlong,
    pub __bindgen_padding_0: u64,
    pub __clang_max_align_nonce2: u128,
}
pub type hipblasStatus_t = ::std::os::raw::c_int;
pub type hipblasHandle_t = *mut ::std::os::raw::c_void;
pub const HIPBLAS_STATUS_SUCCESS: _bindgen_ty_1 = 0;
pub const HIPBLAS_STATUS_INVALID_VALUE: _bindgen_ty_1 = 3;
pub const HIPBLAS_STATUS_NOT_SUPPORTED: _bindgen_ty_1 = 7;
pub type _bindgen_ty_1 = ::std::os::raw::c_uint;
pub const HIPBLAS_OP_N: _bindgen_ty_2 = 111;
pub const HIPBLAS_OP_T: _bindgen_ty_2 = 112;
pub const HIPBLAS_OP_C: _bindgen_ty_2 = 113;
pub type _bindgen_ty_2 = ::std::os::raw::c_uint;
pub const HIPBLAS_R_16F: _bindgen_ty_3 = 150;
pub const HIPBLAS_R_32F: _bindgen_ty_3 = 151;
pub const HIPBLAS_R_16B: _bindgen_ty_3 = 168;
pub type _bindgen_ty_3 = ::std::os::raw::c_uint;
pub const HIP_R_32F: _bindgen_ty_4 = 0;
pub const HIP_R_16F: _bindgen_ty_4 = 2;
pub const HIP_R_16BF: _bindgen_ty_4 = 14;
pub type _bindgen_ty_4 = ::std::os::raw::c_uint;
pub const HIPBLAS_COMPUTE_32F: _bindgen_ty_5 = 2;
pub type _bindgen_ty_5 = ::std::os::raw::c_uint;
pub const HIPBLAS_GEMM_DEFAULT: _bindgen_ty_6 = 160;
pub type _bindgen_ty_6 = ::std::os::raw::c_uint;
pub struct BlasLib {
    __library: ::libloading::Library,
    pub hipblasCreate: Result<
        unsafe extern "C" fn(handle: *mut hipblasHandle_t) -> hipblasStatus_t,
        ::libloading::Error,
    >,
    pub hipblasDestroy: Result<
        unsafe extern "C" fn(handle: hipblasHandle_t) -> hipblasStatus_t,
        ::libloading::Error,
    >,
    pub hipblasSetStream: Result<
        unsafe extern "C" fn(
            handle: hipblasHandle_t,
            stream: *mut ::std::os::raw::c_void,
        ) -> hipblasStatus_t,
        ::libloading::Error,
    >,
    pub hipblasSgemmStridedBatched: Result<
        unsafe extern "C" fn(
            handle: hipblasHandle_t,
            op_a: ::std::os::raw::c_int,
            op_b: ::std::os::raw::c_int,
            m: ::std::os::raw::c_int,
            n: ::std::os::raw::c_int,
            k: ::std::os::raw::c_int,
            alpha: *const f32,
            a: *const f32,
            lda: ::std::os::raw::c_int,
            stride_a: ::std::os::raw::c_longlong,
            b: *const f32,
            ldb: ::std::os::raw::c_int,
            stride_b: ::std::os::raw::c_longlong,
            beta: *const f32,
            c: *mut f32,
            ldc: ::std::os::raw::c_int,
            stride_c: ::std::os::raw::c_longlong,
            batch: ::std::os::raw::c_int,
        ) -> hipblasStatus_t,
        ::libloading::Error,
    >,
    pub hipblasGemmStridedBatchedEx: Result<
        unsafe extern "C" fn(
            handle: hipblasHandle_t,
            op_a: ::std::os::raw::c_int,
            op_b: ::std::os::raw::c_int,
            m: ::std::os::raw::c_int,
            n: ::std::os::raw::c_int,
            k: ::std::os::raw::c_int,
            alpha: *const ::std::os::raw::c_void,
            a: *const ::std::os::raw::c_void,
            a_type: ::std::os::raw::c_int,
            lda: ::std::os::raw::c_int,
            stride_a: ::std::os::raw::c_longlong,
            b: *const ::std::os::raw::c_void,
            b_type: ::std::os::raw::c_int,
            ldb: ::std::os::raw::c_int,
            stride_b: ::std::os::raw::c_longlong,
            beta: *const ::std::os::raw::c_void,
            c: *mut ::std::os::raw::c_void,
            c_type: ::std::os::raw::c_int,
            ldc: ::std::os::raw::c_int,
            stride_c: ::std::os::raw::c_longlong,
            batch: ::std::os::raw::c_int,
            compute_type: ::std::os::raw::c_int,
            algorithm: ::std::os::raw::c_int,
        ) -> hipblasStatus_t,
        ::libloading::Error,
    >,
    pub hipblasGemmStridedBatchedEx_v2: Result<
        unsafe extern "C" fn(
            handle: hipblasHandle_t,
            op_a: ::std::os::raw::c_int,
            op_b: ::std::os::raw::c_int,
            m: ::std::os::raw::c_int,
            n: ::std::os::raw::c_int,
            k: ::std::os::raw::c_int,
            alpha: *const ::std::os::raw::c_void,
            a: *const ::std::os::raw::c_void,
            a_type: ::std::os::raw::c_int,
            lda: ::std::os::raw::c_int,
            stride_a: ::std::os::raw::c_longlong,
            b: *const ::std::os::raw::c_void,
            b_type: ::std::os::raw::c_int,
            ldb: ::std::os::raw::c_int,
            stride_b: ::std::os::raw::c_longlong,
            beta: *const ::std::os::raw::c_void,
            c: *mut ::std::os::raw::c_void,
            c_type: ::std::os::raw::c_int,
            ldc: ::std::os::raw::c_int,
            stride_c: ::std::os::raw::c_longlong,
            batch: ::std::os::raw::c_int,
            compute_type: ::std::os::raw::c_int,
            algorithm: ::std::os::raw::c_int,
        ) -> hipblasStatus_t,
        ::libloading::Error,
    >,
}
impl BlasLib {
    pub unsafe fn new<P>(path: P) -> Result<Self, ::libloading::Error>
    where
        P: AsRef<::std::ffi::OsStr>,
    {
        let library = ::libloading::Library::new(path)?;
        Self::from_library(library)
    }
    pub unsafe fn from_library<L>(library: L) -> Result<Self, ::libloading::Error>
    where
        L: Into<::libloading::Library>,
    {
        let __library = library.into();
        let hipblasCreate = __library.get(b"hipblasCreate\0").map(|sym| *sym);
        let hipblasDestroy = __library.get(b"hipblasDestroy\0").map(|sym| *sym);
        let hipblasSetStream = __library.get(b"hipblasSetStream\0").map(|sym| *sym);
        let hipblasSgemmStridedBatched = __library
            .get(b"hipblasSgemmStridedBatched\0")
            .map(|sym| *sym);
        let hipblasGemmStridedBatchedEx = __library
            .get(b"hipblasGemmStridedBatchedEx\0")
            .map(|sym| *sym);
        let hipblasGemmStridedBatchedEx_v2 = __library
            .get(b"hipblasGemmStridedBatchedEx_v2\0")
            .map(|sym| *sym);
        Ok(BlasLib {
            __library,
            hipblasCreate,
            hipblasDestroy,
            hipblasSetStream,
            hipblasSgemmStridedBatched,
            hipblasGemmStridedBatchedEx,
            hipblasGemmStridedBatchedEx_v2,
        })
    }
    pub unsafe fn hipblasCreate(&self, handle: *mut hipblasHandle_t) -> hipblasStatus_t {
        (self.hipblasCreate.as_ref().expect("Expected function, got error."))(handle)
    }
    pub unsafe fn hipblasDestroy(&self, handle: hipblasHandle_t) -> hipblasStatus_t {
        (self.hipblasDestroy.as_ref().expect("Expected function, got error."))(handle)
    }
    pub unsafe fn hipblasSetStream(
        &self,
        handle: hipblasHandle_t,
        stream: *mut ::std::os::raw::c_void,
    ) -> hipblasStatus_t {
        (self
            .hipblasSetStream
            .as_ref()
            .expect("Expected function, got error."))(handle, stream)
    }
    pub unsafe fn hipblasSgemmStridedBatched(
        &self,
        handle: hipblasHandle_t,
        op_a: ::std::os::raw::c_int,
        op_b: ::std::os::raw::c_int,
        m: ::std::os::raw::c_int,
        n: ::std::os::raw::c_int,
        k: ::std::os::raw::c_int,
        alpha: *const f32,
        a: *const f32,
        lda: ::std::os::raw::c_int,
        stride_a: ::std::os::raw::c_longlong,
        b: *const f32,
        ldb: ::std::os::raw::c_int,
        stride_b: ::std::os::raw::c_longlong,
        beta: *const f32,
        c: *mut f32,
        ldc: ::std::os::raw::c_int,
        stride_c: ::std::os::raw::c_longlong,
        batch: ::std::os::raw::c_int,
    ) -> hipblasStatus_t {
        (self
            .hipblasSgemmStridedBatched
            .as_ref()
            .expect(
                "Expected function, got error.",
            ))(
            handle,
            op_a,
            op_b,
            m,
            n,
            k,
            alpha,
            a,
            lda,
            stride_a,
            b,
            ldb,
            stride_b,
            beta,
            c,
            ldc,
            stride_c,
            batch,
        )
    }
    pub unsafe fn hipblasGemmStridedBatchedEx(
        &self,
        handle: hipblasHandle_t,
        op_a: ::std::os::raw::c_int,
        op_b: ::std::os::raw::c_int,
        m: ::std::os::raw::c_int,
        n: ::std::os::raw::c_int,
        k: ::std::os::raw::c_int,
        alpha: *const ::std::os::raw::c_void,
        a: *const ::std::os::raw::c_void,
        a_type: ::std::os::raw::c_int,
        lda: ::std::os::raw::c_int,
        stride_a: ::std::os::raw::c_longlong,
        b: *const ::std::os::raw::c_void,
        b_type: ::std::os::raw::c_int,
        ldb: ::std::os::raw::c_int,
        stride_b: ::std::os::raw::c_longlong,
        beta: *const ::std::os::raw::c_void,
        c: *mut ::std::os::raw::c_void,
        c_type: ::std::os::raw::c_int,
        ldc: ::std::os::raw::c_int,
        stride_c: ::std::os::raw::c_longlong,
        batch: ::std::os::raw::c_int,
        compute_type: ::std::os::raw::c_int,
        algorithm: ::std::os::raw::c_int,
    ) -> hipblasStatus_t {
        (self
            .hipblasGemmStridedBatchedEx
            .as_ref()
            .expect(
                "Expected function, got error.",
            ))(
            handle,
            op_a,
            op_b,
            m,
            n,
            k,
            alpha,
            a,
            a_type,
            lda,
            stride_a,
            b,
            b_type,
            ldb,
            stride_b,
            beta,
            c,
            c_type,
            ldc,
            stride_c,
            batch,
            compute_type,
            algorithm,
        )
    }
    pub unsafe fn hipblasGemmStridedBatchedEx_v2(
        &self,
        handle: hipblasHandle_t,
        op_a: ::std::os::raw::c_int,
        op_b: ::std::os::raw::c_int,
        m: ::std::os::raw::c_int,
        n: ::std::os::raw::c_int,
        k: ::std::os::raw::c_int,
        alpha: *const ::std::os::raw::c_void,
        a: *const ::std::os::raw::c_void,
        a_type: ::std::os::raw::c_int,
        lda: ::std::os::raw::c_int,
        stride_a: ::std::os::raw::c_longlong,
        b: *const ::std::os::raw::c_void,
        b_type: ::std::os::raw::c_int,
        ldb: ::std::os::raw::c_int,
        stride_b: ::std::os::raw::c_longlong,
        beta: *const ::std::os::raw::c_void,
        c: *mut ::std::os::raw::c_void,
        c_type: ::std::os::raw::c_int,
        ldc: ::std::os::raw::c_int,
        stride_c: ::std::os::raw::c_longlong,
        batch: ::std::os::raw::c_int,
        compute_type: ::std::os::raw::c_int,
        algorithm: ::std::os::raw::c_int,
    ) -> hipblasStatus_t {
        (self
            .hipblasGemmStridedBatchedEx_v2
            .as_ref()
            .expect(
                "Expected function, got error.",
            ))(
            handle,
            op_a,
            op_b,
            m,
            n,
            k,
            alpha,
            a,
            a_type,
            lda,
            stride_a,
            b,
            b_type,
            ldb,
            stride_b,
            beta,
            c,
            c_type,
            ldc,
            stride_c,
            batch,
            compute_type,
            algorithm,
        )
    }
}
}
