//! A dense table by 20-bit slot, whose keys carry a 12-bit generation: a freed key finds nothing, even
//! after its slot was given again.

/// See the module.
#[derive(Debug)]
pub(crate) struct Table<T> {
    slots: Vec<Option<(u32, T)>>,
    used: usize,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), used: 0 }
    }
}

impl<T> Table<T> {
    #[inline]
    pub(crate) fn get(&self, key: u32) -> Option<&T> {
        match self.slots.get(slot(key))? {
            Some((held, value)) if *held == key => Some(value),
            _ => None,
        }
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, key: u32) -> Option<&mut T> {
        match self.slots.get_mut(slot(key))? {
            Some((held, value)) if *held == key => Some(value),
            _ => None,
        }
    }

    pub(crate) fn insert(&mut self, key: u32, value: T) {
        if self.slots.len() <= slot(key) {
            self.slots.resize_with(slot(key) + 1, || None);
        }
        if let Some(place) = self.slots.get_mut(slot(key))
            && place.replace((key, value)).is_none()
        {
            self.used += 1;
        }
    }

    pub(crate) fn remove(&mut self, key: u32) -> Option<T> {
        self.get(key)?;
        let (_, value) = self.slots.get_mut(slot(key))?.take()?;
        self.used -= 1;
        Some(value)
    }

    /// Frees a slot whose value meets `condition`, and tells its key.
    pub(crate) fn remove_if(&mut self, slot: usize, condition: impl Fn(u32, &T) -> bool) -> Option<u32> {
        let place = self.slots.get_mut(slot)?;
        let (key, _) = place.take_if(|(key, value)| condition(*key, value))?;
        self.used -= 1;
        Some(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.slots.iter().filter_map(|slot| slot.as_ref().map(|(key, value)| (*key, value)))
    }

    /// The keys in these slots.
    pub(crate) fn keys(&self, slots: std::ops::Range<usize>) -> impl Iterator<Item = u32> {
        let places = slots.filter_map(|slot| self.slots.get(slot)?.as_ref());
        places.map(|(key, _)| *key)
    }

    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.used
    }
}

fn slot(key: u32) -> usize {
    (key >> 12) as usize
}
