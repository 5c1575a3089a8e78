//! Numbers for things: states are kept small by them.

use std::collections::HashMap;
use std::hash::Hash;

/// Things with numbers in their place.
pub(crate) struct Numbered<T> {
    all: Vec<T>,
    numbers: HashMap<T, u16>,
}

impl<T: Clone + Eq + Hash> Numbered<T> {
    pub(crate) fn new() -> Self {
        Self { all: Vec::new(), numbers: HashMap::new() }
    }

    pub(crate) fn number(&mut self, thing: T) -> u16 {
        if let Some(number) = self.numbers.get(&thing) {
            return *number;
        }
        let number = u16::try_from(self.all.len()).expect("few distinct machines exist within the budget");
        self.all.push(thing.clone());
        self.numbers.insert(thing, number);
        number
    }

    pub(crate) fn get(&self, number: u16) -> &T {
        &self.all[usize::from(number)]
    }
}
