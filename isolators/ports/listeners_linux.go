package ports

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// sockDiagByFamily is SOCK_DIAG_BY_FAMILY of linux/sock_diag.h, which x/sys does not name.
	sockDiagByFamily = 20
	// stateListen is TCP_LISTEN as a bit of idiag_states.
	stateListen = 1 << 10
	// diagRequest is the size of struct inet_diag_req_v2, diagAnswer that of struct inet_diag_msg (linux/inet_diag.h).
	diagRequest = 56
	diagAnswer  = 72
	// Where in an answer the local port (network order) and the inode stand.
	diagSourcePort = 4
	diagInode      = 68
	// patience bounds one dump. It takes milliseconds on a machine with thousands of listeners.
	patience = 5 * time.Second
)

// listeners asks the kernel for the listening TCP sockets of this network namespace: inode to port. Sockets that
// belong to no process any more have no inode and are left out.
func listeners() (map[uint64]uint16, error) {
	found := map[uint64]uint16{}
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		err := dump(family, found)
		if family == unix.AF_INET6 && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAFNOSUPPORT)) {
			continue // a kernel without IPv6 has no such listeners
		}
		if err != nil {
			return nil, fmt.Errorf("list listening sockets: %w", err)
		}
	}
	return found, nil
}

func dump(family byte, found map[uint64]uint16) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	timeout := unix.NsecToTimeval(patience.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return fmt.Errorf("receive timeout: %w", err)
	}
	request := make([]byte, unix.SizeofNlMsghdr+diagRequest)
	order := binary.NativeEndian
	order.PutUint32(request, uint32(len(request)))
	order.PutUint16(request[4:], sockDiagByFamily)
	order.PutUint16(request[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	body := request[unix.SizeofNlMsghdr:]
	body[0], body[1] = family, unix.IPPROTO_TCP
	order.PutUint32(body[4:], stateListen)
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	buf := make([]byte, 64<<10)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
			continue // not from the kernel
		}
		done, err := parseDiag(buf[:n], found)
		if done || err != nil {
			return err
		}
	}
	return fmt.Errorf("receive: no end within %s", patience)
}

// parseDiag reads one datagram of answers and says whether it was the last.
func parseDiag(data []byte, found map[uint64]uint16) (done bool, err error) {
	order := binary.NativeEndian
	for len(data) >= unix.SizeofNlMsghdr {
		size := int(order.Uint32(data))
		if size < unix.SizeofNlMsghdr || size > len(data) {
			return false, fmt.Errorf("a message of %d bytes in %d", size, len(data))
		}
		body := data[unix.SizeofNlMsghdr:size]
		switch order.Uint16(data[4:]) {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			if len(body) >= 4 {
				if errno := -int32(order.Uint32(body)); errno > 0 {
					return true, unix.Errno(errno)
				}
			}
			return true, nil
		case sockDiagByFamily:
			if len(body) < diagAnswer {
				return false, fmt.Errorf("an answer of %d bytes, want %d", len(body), diagAnswer)
			}
			if inode := order.Uint32(body[diagInode:]); inode != 0 {
				found[uint64(inode)] = binary.BigEndian.Uint16(body[diagSourcePort:])
			}
		}
		aligned := (size + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1)
		data = data[min(aligned, len(data)):]
	}
	return false, nil
}
