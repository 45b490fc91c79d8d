package agent

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// dialIn connects to address in the network namespace of process pid. Names, which only redirects of an HTTP check can
// bring here, are looked up as the agent does.
func dialIn(ctx context.Context, pid int32, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	addresses := []string{address}
	if _, err := netip.ParseAddr(host); err != nil {
		found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if err != nil {
			return nil, err
		}
		addresses = nil
		for _, ip := range found {
			addresses = append(addresses, net.JoinHostPort(ip.Unmap().String(), port))
		}
	}
	var conn net.Conn
	for _, address := range addresses {
		if conn, err = dialOne(ctx, pid, address); err == nil {
			return conn, nil
		}
	}
	return nil, err
}

// dialOne makes the socket on a thread that visits the namespace for that moment: a socket stays in the one it was made
// in, and connecting may take long.
func dialOne(ctx context.Context, pid int32, address string) (net.Conn, error) {
	theirs, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, fmt.Errorf("enter the task's network: %w", err)
	}
	defer theirs.Close()
	runtime.LockOSThread()
	ours, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("look at the agent's network: %w", err)
	}
	defer ours.Close()
	if same, err := sameFile(ours, theirs); err != nil || same {
		runtime.UnlockOSThread()
		if err != nil {
			return nil, fmt.Errorf("enter the task's network: %w", err)
		}
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}
	if err := unix.Setns(int(theirs.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("enter the task's network: %w", err)
	}
	away := true
	back := func() error {
		if away {
			if err := unix.Setns(int(ours.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("leave the task's network: %w", err) // the thread stays locked, and ends with its goroutine
			}
			away = false
			runtime.UnlockOSThread()
		}
		return nil
	}
	// Control is called by this goroutine when the socket is there and not yet connected. The address is a number, and
	// one alone, so that nothing is handed to other goroutines. It is called again, with a second socket, after a first
	// that happened to connect to itself: nobody listens there.
	d := net.Dialer{Control: func(string, string, syscall.RawConn) error {
		if !away {
			return syscall.ECONNREFUSED
		}
		return back()
	}}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err := back(); err != nil {
		if conn != nil {
			_ = conn.Close()
		}
		return nil, err
	}
	return conn, err
}

func sameFile(a, b *os.File) (bool, error) {
	x, err := a.Stat()
	if err != nil {
		return false, err
	}
	y, err := b.Stat()
	if err != nil {
		return false, err
	}
	return os.SameFile(x, y), nil
}
