//! Which stacks the lines of a stall that still lasts have told, so that its next line need not.

use std::collections::{HashMap, VecDeque};

use super::stacks::{StackForm, Written};

/// Stalls that are remembered: as many as loops stall at once. Of those that are forgotten a stack is told again.
const MAX_STALLS: usize = 256;

/// Stacks of one stall that are remembered.
const MAX_STACKS: usize = 1024;

/// By the stall's id, the oldest first.
#[derive(Debug, Default)]
pub struct ToldStacks(VecDeque<(String, HashMap<u64, StackForm>)>);

impl ToldStacks {
    /// Whether a line of the stall had this stack, in this form or whole.
    pub fn has(&self, id: &str, key: u64, form: StackForm) -> bool {
        let stall = self.0.iter().find(|(known, _)| known == id);
        stall.and_then(|(_, stacks)| stacks.get(&key)).is_some_and(|told| *told >= form)
    }

    pub fn add(&mut self, id: &str, written: Vec<Written>) {
        if !self.0.iter().any(|(known, _)| known == id) {
            self.0.push_back((id.to_owned(), HashMap::new()));
            if self.0.len() > MAX_STALLS {
                self.0.pop_front();
            }
        }
        let Some((_, stacks)) = self.0.iter_mut().find(|(known, _)| known == id) else { return };
        for Written { key, form } in written {
            if stacks.len() < MAX_STACKS || stacks.contains_key(&key) {
                let told = stacks.entry(key).or_insert(form);
                *told = form.max(*told);
            }
        }
    }

    pub fn forget(&mut self, id: &str) {
        self.0.retain(|(known, _)| known != id);
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_STACKS, MAX_STALLS, StackForm, ToldStacks, Written};

    /// A whole stack need not be told by its line, but one that was told by its line still has to be told whole.
    #[test]
    fn forms() {
        let mut told = ToldStacks::default();
        assert!(!told.has("a", 1, StackForm::Line));
        told.add("a", vec![Written { key: 1, form: StackForm::Line }]);
        assert!(told.has("a", 1, StackForm::Line) && !told.has("a", 1, StackForm::Whole));
        told.add("a", vec![Written { key: 1, form: StackForm::Whole }]);
        told.add("a", vec![Written { key: 1, form: StackForm::Line }]);
        assert!(told.has("a", 1, StackForm::Line) && told.has("a", 1, StackForm::Whole));
        assert!(!told.has("b", 1, StackForm::Line) && !told.has("a", 2, StackForm::Line));
        told.forget("a");
        assert!(!told.has("a", 1, StackForm::Line));
    }

    /// A stall without end does not make it grow without end.
    #[test]
    fn bounded() {
        let mut told = ToldStacks::default();
        for stall in 0..2 * MAX_STALLS {
            told.add(&stall.to_string(), vec![Written { key: 1, form: StackForm::Whole }]);
        }
        assert_eq!(told.0.len(), MAX_STALLS);
        let written = (0..2 * MAX_STACKS as u64).map(|key| Written { key, form: StackForm::Line });
        told.add("one", written.collect());
        assert_eq!(told.0.back().map(|(_, stacks)| stacks.len()), Some(MAX_STACKS));
    }
}
