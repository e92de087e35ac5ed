//! What has been done and how to undo it.

use orlop_proto::error::{Error, Result};

type Step<'a> = Box<dyn FnOnce() -> Result<()> + 'a>;

/// The inverses of completed effects, in the order in which these were done.
#[derive(Default)]
pub struct Undo<'a> {
    steps: Vec<Step<'a>>,
}

impl<'a> Undo<'a> {
    /// Remembers how to undo what has just been done.
    pub fn push(&mut self, step: impl FnOnce() -> Result<()> + 'a) {
        self.steps.push(Box::new(step));
    }

    /// Undoes everything, latest first; returns the error with what else went wrong on the way back.
    pub fn unwind(self, error: Error) -> Error {
        let mut problems = Vec::new();
        for step in self.steps.into_iter().rev() {
            if let Err(problem) = step() {
                problems.push(problem.to_string());
            }
        }
        if problems.is_empty() {
            return error;
        }
        Error::exactly(error.kind(), format!("{error} (and while undoing: {})", problems.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_proto::kind::Kind;
    use std::cell::RefCell;

    #[test]
    fn unwinds_backwards_and_tells_every_problem() {
        let order = RefCell::new(Vec::new());
        let mut undo = Undo::default();
        undo.push(|| {
            order.borrow_mut().push(1);
            Ok(())
        });
        undo.push(|| {
            order.borrow_mut().push(2);
            Err(Error::exactly(Kind::Internal, "stuck"))
        });
        let error = undo.unwind(Error::exactly(Kind::NotFound, "gone"));
        assert_eq!(error.to_string(), "gone (and while undoing: stuck)");
        assert_eq!(error.kind(), Kind::NotFound);
        assert_eq!(*order.borrow(), [2, 1]);
    }
}
