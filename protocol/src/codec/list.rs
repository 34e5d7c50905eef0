//! Lists that are decoded while they are iterated.

use core::fmt;
use core::marker::PhantomData;

use super::{Address, DecodeError, Decoder, Value};

/// The list at the end of a body, still encoded.
///
/// Items are decoded one by one as [`iter`](Self::iter) reaches them; the
/// bytes are checked then, not before. A receiver that must not act on half a
/// list walks it once with [`check`](Self::check) first.
pub struct List<'a, T> {
    length: u16,
    bytes: &'a [u8],
    item: PhantomData<fn() -> T>,
}

impl<'a, T: Value> List<'a, T> {
    /// The list that comes next, and ends where the bytes end.
    pub(crate) fn take(mut from: Decoder<'a>) -> Result<Self, DecodeError> {
        let length = Value::take(&mut from);
        Ok(Self { length, bytes: from.rest()?, item: PhantomData })
    }

    /// The number of items that the sender announced.
    pub fn len(&self) -> u16 {
        self.length
    }

    /// Whether the sender announced no item.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Decodes the items in order. After the first error the iterator ends.
    pub fn iter(&self) -> ListIter<'a, T> {
        ListIter { left: self.length, from: Decoder::new(self.bytes), item: PhantomData }
    }

    /// Decodes the items in order and hands each over with its place in the list, counted from 0.
    ///
    /// # Errors
    /// The first thing that is wrong with the list, trailing bytes included. The items before it
    /// have been handed over.
    #[inline]
    pub fn for_each(&self, mut on_item: impl FnMut(u16, T)) -> Result<(), DecodeError> {
        let mut from = Decoder::new(self.bytes);
        let mut known = Address::ZERO;
        for place in 0..self.length {
            let item = T::take_item(&mut from, &mut known);
            from.rest()?;
            on_item(place, item);
        }
        from.end()
    }

    /// Walks the whole list once.
    ///
    /// # Errors
    /// The first thing that is wrong with it, trailing bytes included.
    pub fn check(&self) -> Result<(), DecodeError> {
        self.for_each(|_, _| {})
    }
}

impl<T> Clone for List<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for List<'_, T> {}

impl<T> fmt::Debug for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("List")
            .field("length", &self.length)
            .field("bytes", &self.bytes.len())
            .finish()
    }
}

impl<'a, T: Value> IntoIterator for List<'a, T> {
    type Item = Result<T, DecodeError>;
    type IntoIter = ListIter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// The items of a [`List`].
#[derive(Debug)]
pub struct ListIter<'a, T> {
    left: u16,
    /// Failed, and empty, once an error was given.
    from: Decoder<'a>,
    item: PhantomData<fn() -> T>,
}

impl<T: Value> Iterator for ListIter<'_, T> {
    type Item = Result<T, DecodeError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let item = match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                let item = T::take(&mut self.from);
                self.from.rest().map(|_| item)
            }
            None => match self.from.end() {
                Ok(()) => return None,
                Err(error) => Err(error),
            },
        };
        if item.is_err() {
            self.left = 0;
            self.from = Decoder::new(&[]);
        }
        Some(item)
    }
}
