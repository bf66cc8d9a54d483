//! Tensors: a piece of a backend's memory with a shape, and views of it.

use std::fmt;

use crate::backend::Mem;
use crate::{DType, Error, Result};

/// Most axes a tensor can have.
pub const MAX_RANK: usize = 5;

/// Extents of up to [`MAX_RANK`] axes, outermost first.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; MAX_RANK],
    rank: usize,
}

impl Shape {
    /// Extents as a slice.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of elements; 1 for a scalar.
    pub fn numel(&self) -> usize {
        self.dims().iter().product()
    }

    /// Extent of the last axis; 1 for a scalar.
    pub fn last(&self) -> usize {
        self.dims().last().copied().unwrap_or(1)
    }

    /// Strides, in elements, of a dense row-major tensor of this shape.
    pub fn row_major(&self) -> Self {
        let mut strides = *self;
        let mut step = 1;
        for axis in (0..self.rank).rev() {
            strides.dims[axis] = step;
            step *= self.dims[axis];
        }
        strides
    }
}

impl From<&[usize]> for Shape {
    /// Axes past [`MAX_RANK`] are folded into the last one.
    fn from(extents: &[usize]) -> Self {
        let mut dims = [1; MAX_RANK];
        let rank = extents.len().min(MAX_RANK);
        dims[..rank].copy_from_slice(&extents[..rank]);
        for extra in &extents[rank..] {
            dims[MAX_RANK - 1] *= extra;
        }
        Self { dims, rank }
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(extents: [usize; N]) -> Self {
        Self::from(extents.as_slice())
    }
}

impl std::ops::Index<usize> for Shape {
    type Output = usize;
    fn index(&self, axis: usize) -> &usize {
        &self.dims()[axis]
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

/// Where a tensor lies and how it is laid out, without owning the memory. What ops receive and
/// what a recorded step keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// Address of the first element in the backend's address space.
    pub address: u64,
    /// Extents.
    pub shape: Shape,
    /// Steps between neighbours along each axis, in elements.
    pub strides: Shape,
    /// Element type.
    pub dtype: DType,
}

impl View {
    /// Bytes from the first element to the end of the last one.
    pub fn span_bytes(&self) -> usize {
        if self.shape.numel() == 0 {
            return 0;
        }
        let last: usize =
            self.shape.dims().iter().zip(self.strides.dims()).map(|(n, s)| (n - 1) * s).sum();
        (last + 1) * self.dtype.size()
    }

    /// True where elements follow each other in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        let dense = self.shape.row_major();
        let axes = self.shape.dims().iter().zip(self.strides.dims().iter().zip(dense.dims()));
        axes.into_iter().all(|(&n, (s, d))| n <= 1 || s == d)
    }
}

/// A shaped, typed piece of a backend's memory. Cloning shares the memory; the last clone dropped
/// gives it back to the arena, in queue order.
#[derive(Clone)]
pub struct Tensor {
    mem: Mem,
    view: View,
}

impl Tensor {
    /// A dense tensor at the beginning of `mem`.
    pub fn new(mem: Mem, shape: impl Into<Shape>, dtype: DType) -> Self {
        let shape = shape.into();
        let view = View { address: mem.address(), shape, strides: shape.row_major(), dtype };
        debug_assert!(view.span_bytes() <= mem.bytes());
        Self { mem, view }
    }

    /// Layout and address.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Extents.
    pub fn shape(&self) -> &Shape {
        &self.view.shape
    }

    /// Extents as a slice.
    pub fn dims(&self) -> &[usize] {
        self.view.shape.dims()
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.view.dtype
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.view.shape.numel()
    }

    /// True when no other tensor shares this memory, so it may be overwritten.
    pub fn is_unique(&self) -> bool {
        self.mem.is_unique()
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    /// [`Error::Shape`] when the element counts differ or the tensor is not contiguous.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if shape.numel() != self.numel() || !self.view.is_contiguous() {
            return Err(Error::shape("reshape", format!("{} to {shape}", self.view.shape)));
        }
        let view = View { shape, strides: shape.row_major(), ..self.view };
        Ok(Self { mem: self.mem.clone(), view })
    }

    /// `length` entries from `start` along the first axis; shares memory.
    ///
    /// # Errors
    /// [`Error::Shape`] when the range does not lie within the axis.
    pub fn narrow(&self, start: usize, length: usize) -> Result<Self> {
        let dims = self.dims();
        if dims.is_empty() || start + length > dims[0] {
            let problem = format!("{start}..{} of {}", start + length, self.view.shape);
            return Err(Error::shape("narrow", problem));
        }
        let mut extents = dims.to_vec();
        extents[0] = length;
        let skip = (start * self.view.strides[0] * self.dtype().size()) as u64;
        let view = View {
            address: self.view.address + skip,
            shape: extents.as_slice().into(),
            ..self.view
        };
        Ok(Self { mem: self.mem.clone(), view })
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype().name(), self.view.shape)
    }
}
