//! The types of chapter 3 that are no structures.

use super::{Decoder, Encoder, Value, Width, low_half};

impl Value for u16 {
    #[inline]
    fn put(&self, to: &mut Encoder<'_>) {
        to.number(u64::from(*self));
    }

    #[inline]
    fn take(from: &mut Decoder<'_>) -> Self {
        let [low, high, ..] = from.number(Width::U16).to_le_bytes();
        Self::from_le_bytes([low, high])
    }
}

impl Value for u32 {
    #[inline]
    fn put(&self, to: &mut Encoder<'_>) {
        to.number(u64::from(*self));
    }

    #[inline]
    fn take(from: &mut Decoder<'_>) -> Self {
        low_half(from.number(Width::U32))
    }
}

impl Value for u64 {
    #[inline]
    fn put(&self, to: &mut Encoder<'_>) {
        to.number(*self);
    }

    #[inline]
    fn take(from: &mut Decoder<'_>) -> Self {
        from.number(Width::U64)
    }
}

impl Value for bool {
    #[inline]
    fn put(&self, to: &mut Encoder<'_>) {
        to.byte(u8::from(*self));
    }

    #[inline]
    fn take(from: &mut Decoder<'_>) -> Self {
        from.flag()
    }
}

impl<T: Value> Value for Option<T> {
    #[inline]
    fn put(&self, to: &mut Encoder<'_>) {
        self.is_some().put(to);
        if let Some(value) = self {
            value.put(to);
        }
    }

    #[inline]
    fn take(from: &mut Decoder<'_>) -> Self {
        from.flag().then(|| T::take(from))
    }
}
