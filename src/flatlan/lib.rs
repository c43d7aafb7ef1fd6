//! One flat, encrypted virtual LAN over every site.
