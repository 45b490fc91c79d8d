package ports

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"testing"
)

func TestListenersAreThoseOfTheKernel(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp4", l.Addr().String()) // a connection on the same port is no listener
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	all, err := listeners()
	if err != nil {
		t.Fatalf("listeners: %v", err)
	}
	n := 0
	for _, port := range all {
		if int(port) == l.Addr().(*net.TCPAddr).Port {
			n++
		}
		if int(port) == client.LocalAddr().(*net.TCPAddr).Port {
			t.Errorf("listeners has port %d of a connection", port)
		}
	}
	if n != 1 {
		t.Errorf("listeners has port %d of %v %d times, want once", l.Addr().(*net.TCPAddr).Port, all, n)
	}
}

func TestAnswersThatMakeNoSenseAreErrorsOrNothing(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d", seed)
	for range 20_000 {
		data := make([]byte, r.IntN(200))
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		if len(data) >= 8 { // so that some come further than the first check
			binary.NativeEndian.PutUint32(data, uint32(r.IntN(len(data)+4)))
			binary.NativeEndian.PutUint16(data[4:], []uint16{sockDiagByFamily, 2, 3}[r.IntN(3)])
		}
		found := map[uint64]uint16{}
		if _, err := parseDiag(data, found); err != nil && len(found) > 2 {
			t.Fatalf("parseDiag(%x) = %v with %v", data, err, found)
		}
	}
	short := make([]byte, 20)
	binary.NativeEndian.PutUint32(short, 20)
	binary.NativeEndian.PutUint16(short[4:], sockDiagByFamily)
	if _, err := parseDiag(short, map[uint64]uint16{}); err == nil {
		t.Errorf("parseDiag of an answer of 4 bytes succeeded, want an error")
	}
}
