//! Images: references, archive import, content store, layers.
