package forward

import "syscall"

// errTooLong is what a datagram socket says of a message larger than it takes.
const errTooLong = syscall.EMSGSIZE
