//! The packet engine: sessions, lanes and paths of one worker, without IO.
