//! Adding what is learned per position.

use bytemuck::{Pod, Zeroable};

use super::{op, plans, size};
use crate::backend::cpu::host::{HostIo, HostKernel};
use crate::backend::cpu::parallel::for_rows;
use crate::backend::cpu::real::{Real, vectorised};
use crate::tape::{Tape, Var};
use crate::{Error, Result};

/// y[b] = x[b] + table for every b. Inputs: x `[batch, n]`, table `[n]`; output: y.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct AddTable {
    batch: u32,
    n: u32,
}

op!(AddTable, "add_table", |op, arch, kernel| {
    plans::elements(kernel, op.batch as usize * op.n as usize)
});

impl HostKernel for AddTable {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (batch, n) = (self.batch as usize, self.n as usize);
        let (x, table) = (io.input_n::<T>(0, batch * n)?, io.input_n::<T>(1, n)?);
        for_rows(io.output_n::<T>(0, batch * n)?, n, n, |first, y| {
            let x = &x[first * n..][..y.len()];
            vectorised!({
                for (y, x) in y.chunks_exact_mut(n).zip(x.chunks_exact(n)) {
                    y.iter_mut().zip(x).zip(table).for_each(|((y, &x), &t)| *y = x + t);
                }
            });
        });
        Ok(())
    }
}

/// Adds a table `[..]` of positions to each item of `x` `[batch, ..]`.
///
/// # Errors
/// [`Error::Shape`] when the table is not of an item's shape.
pub fn add_positions(tape: &Tape<'_>, x: &Var, table: &Var) -> Result<Var> {
    if x.dims().get(1..) != Some(table.dims()) {
        let problem = format!("{} for items of {}", table.shape(), x.shape());
        return Err(Error::shape("positions", problem));
    }
    let (batch, n) = (size(x.dims()[0]), size(table.tensor().numel()));
    let y = tape.empty(*x.shape(), x.dtype(), "positions")?;
    tape.run(AddTable { batch, n }, &[x.tensor(), table.tensor()], &[&y])?;
    let (input, positions) = (x.clone(), table.clone());
    Ok(tape.push(y, &[x, table], move |grads, dy| {
        if let Some(to) = grads.target(&positions)? {
            let op =
                super::gemm::ColumnSums { rows: batch, cols: n, accumulate: to.accumulate.into() };
            grads.tape().run(op, &[&dy], &[&to.tensor])?;
        }
        grads.give(&input, dy)
    }))
}
