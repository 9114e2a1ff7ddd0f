//! Places for what the kernel's events are about.

/// Names a place and who is in it: an event for somebody who left does not reach who came after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    index: u32,
    /// 24 bits.
    generation: u32,
}

/// What an event is about, as it travels through the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Mailbox,
    TcpListener(Key),
    /// The accepted side of a connection.
    Client(Key),
    /// The connected side.
    Server(Key),
    UdpListener(Key),
    Flow(Key),
}

const GENERATIONS: u32 = 0x00ff_ffff;

impl Token {
    pub(super) fn pack(self) -> u64 {
        let (kind, key) = match self {
            Token::Mailbox => (0, Key { index: 0, generation: 0 }),
            Token::TcpListener(key) => (1, key),
            Token::Client(key) => (2, key),
            Token::Server(key) => (3, key),
            Token::UdpListener(key) => (4, key),
            Token::Flow(key) => (5, key),
        };
        kind << 56 | u64::from(key.generation) << 32 | u64::from(key.index)
    }

    pub(super) fn unpack(packed: u64) -> Option<Self> {
        let key = Key { index: packed as u32, generation: (packed >> 32) as u32 & GENERATIONS };
        match packed >> 56 {
            0 => Some(Token::Mailbox),
            1 => Some(Token::TcpListener(key)),
            2 => Some(Token::Client(key)),
            3 => Some(Token::Server(key)),
            4 => Some(Token::UdpListener(key)),
            5 => Some(Token::Flow(key)),
            _ => None,
        }
    }
}

/// Values at places that are used again.
pub(super) struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
    /// The generation of who comes first to a new place.
    first: u32,
}

struct Place<T> {
    generation: u32,
    value: Option<T>,
}

/// Places an empty slab keeps; more go back to the allocator.
const KEPT: usize = 1024;

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new(), first: 0 }
    }
}

impl<T> Slab<T> {
    pub(super) fn insert(&mut self, value: T) -> Key {
        if let Some(index) = self.free.pop() {
            let place = &mut self.places[index as usize];
            place.value = Some(value);
            return Key { index, generation: place.generation };
        }
        // Every value holds a descriptor, of which there are fewer than 2^31.
        let index = self.places.len() as u32;
        self.places.push(Place { generation: self.first, value: Some(value) });
        Key { index, generation: self.first }
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let place = self.places.get_mut(key.index as usize).filter(|place| place.generation == key.generation)?;
        place.value.as_mut()
    }

    pub(super) fn get(&self, key: Key) -> Option<&T> {
        let place = self.places.get(key.index as usize).filter(|place| place.generation == key.generation)?;
        place.value.as_ref()
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        let place = self.places.get_mut(key.index as usize).filter(|place| place.generation == key.generation)?;
        let value = place.value.take()?;
        place.generation = (place.generation + 1) & GENERATIONS;
        self.free.push(key.index);
        Some(value)
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Who is in: for sweeps, not for traffic.
    pub(super) fn keys(&self) -> Vec<Key> {
        let taken = self.places.iter().enumerate().filter(|(_, place)| place.value.is_some());
        taken.map(|(index, place)| Key { index: index as u32, generation: place.generation }).collect()
    }

    /// Gives back the memory of a crowd that left.
    pub(super) fn shrink(&mut self) {
        if self.len() == 0 && self.places.len() > KEPT {
            let last = self.places.iter().map(|place| place.generation).max().unwrap_or(0);
            *self = Self { first: (last + 1) & GENERATIONS, ..Self::default() };
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn who_left_is_not_found_in_who_came_after() {
        let mut slab = Slab::default();
        let first = slab.insert("first");
        assert_eq!(slab.remove(first), Some("first"));
        let second = slab.insert("second");
        assert_eq!(first.index, second.index);
        assert_eq!((slab.get(first), slab.get(second), slab.len()), (None, Some(&"second"), 1));
        assert_eq!((slab.remove(first), slab.keys()), (None, vec![second]));
    }

    #[test]
    fn a_crowd_that_left_leaves_neither_memory_nor_keys() {
        let mut slab = Slab::default();
        let keys: Vec<Key> = (0..=KEPT).map(|number| slab.insert(number)).collect();
        keys.iter().for_each(|key| assert!(slab.remove(*key).is_some()));
        slab.shrink();
        assert_eq!(slab.places.capacity(), 0);
        let key = slab.insert(7);
        assert_eq!((key.index, slab.get(keys[0]), slab.get(key)), (0, None, Some(&7)));
    }

    #[test]
    fn tokens_survive_the_kernel() {
        let key = Key { index: u32::MAX, generation: GENERATIONS };
        for token in [
            Token::Mailbox,
            Token::TcpListener(key),
            Token::Client(key),
            Token::Server(key),
            Token::UdpListener(key),
            Token::Flow(key),
        ] {
            assert_eq!(Token::unpack(token.pack()).unwrap(), token);
        }
        assert_eq!(Token::unpack(u64::MAX), None);
    }
}
