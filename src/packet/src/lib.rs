//! IP, TCP, UDP and ICMP views, super-packets, segmentation and coalescing.
