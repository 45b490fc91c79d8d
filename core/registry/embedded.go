package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
)

// EmbeddedConfig describes the etcd member that a master runs in its own process.
type EmbeddedConfig struct {
	// Dir is where the member keeps its data, and nothing else. It is made if need be, with
	// access for the owner only.
	Dir string
	// Name is the member's name among Members. "" means "mosaic".
	Name string
	// Members are the peer URLs of all members by name, this one too, when there are several:
	// {"m1": "https://10.0.0.1:2380", ...}. All masters are given the same. Empty for a single
	// member, which then listens on no socket at all.
	Members map[string]string
	// ListenPeer is the URL to listen on for the other members; "" means this member's URL.
	ListenPeer string
	// TLS is required between members unless all of them are on loopback.
	TLS *TLSFiles
	// StoreTimeout and LeaseTTL are as in EtcdConfig.
	StoreTimeout time.Duration
	LeaseTTL     time.Duration
	Logger       *slog.Logger
}

// TLSFiles are PEM files with which members know each other.
type TLSFiles struct{ Cert, Key, CA string }

const (
	// A single member waits for nobody: a few milliseconds are enough for its election.
	singleTick, singleElection = 5, 25 // ms
	// Several members need to survive a stalled disk or a garbage collection of one of them.
	tick, election = 100, 1000 // ms
	// embeddedMaxOps is the largest transaction: every agent of a large cluster at once.
	embeddedMaxOps = 16384
	// embeddedMaxBytes is the largest transaction in bytes: embeddedMaxOps agents of 1 KiB.
	embeddedMaxBytes = 16 << 20
	// singleLeaseTTL is long because nobody waits for a single member's lease, and a stalled
	// disk should not cost it the leadership.
	singleLeaseTTL = 60 * time.Second
)

// OpenEmbedded starts an etcd member in this process and returns its store once the member
// takes part in a majority, or ctx ends.
//
// Errors name the directory: it is in use by another process, cannot be written, or holds
// data that cannot be read. The last is for the operator to decide: a member of several can
// be emptied and joins again; a single one is restored from a copy.
func OpenEmbedded(ctx context.Context, c EmbeddedConfig) (*Etcd, error) {
	store, err := openEmbedded(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("registry in %s: %w", c.Dir, err)
	}
	return store, nil
}

func openEmbedded(ctx context.Context, c EmbeddedConfig) (_ *Etcd, err error) {
	if c.Dir == "" {
		return nil, errors.New("no directory given")
	}
	if c.Name == "" {
		c.Name = "mosaic"
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	unlock, err := lock(c.Dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			unlock()
		}
	}()
	config, err := embedConfig(c)
	if err != nil {
		return nil, err
	}
	if err := checkDatabase(filepath.Join(config.Dir, "member", "snap", "db")); err != nil {
		return nil, err
	}
	member, err := start(config)
	if err != nil {
		return nil, err
	}
	select {
	case <-member.Server.ReadyNotify():
	case err = <-member.Err():
	case <-member.Server.StopNotify():
		err = errors.New("etcd stopped while it started")
	case <-ctx.Done():
		err = fmt.Errorf("waiting for a majority of members: %w", ctx.Err())
	}
	if err != nil {
		member.Close()
		return nil, err
	}
	single := len(c.Members) <= 1
	if c.LeaseTTL == 0 && single {
		c.LeaseTTL = singleLeaseTTL
	}
	client := v3client.New(member.Server)
	store := newEtcd(client, EtcdConfig{
		StoreTimeout: c.StoreTimeout, LeaseTTL: c.LeaseTTL, MaxTxnOps: embeddedMaxOps, Logger: c.Logger,
	}, func() {
		member.Close()
		unlock()
	})
	store.maxBytes = embeddedMaxBytes
	if single {
		// We hold the directory's lock, so whoever led through it before is dead.
		if _, err := client.Delete(ctx, store.election()+"/", clientv3.WithPrefix()); err != nil {
			return nil, errors.Join(fmt.Errorf("clear the election: %w", err), store.Close())
		}
	}
	return store, nil
}

// lock makes sure that no other process uses the directory: etcd itself would wait for ever.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "LOCK"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := tryLock(f); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(f, 64))
		f.Close()
		return nil, fmt.Errorf("in use by another process (%s): %w", strings.TrimSpace(string(holder)), err)
	}
	// The process id is for the message above only; the lock itself is the kernel's.
	if err := f.Truncate(0); err == nil {
		_, _ = fmt.Fprintf(f, "pid %d\n", os.Getpid())
	}
	return func() { f.Close() }, nil
}

func embedConfig(c EmbeddedConfig) (*embed.Config, error) {
	config := embed.NewConfig()
	config.Name = c.Name
	config.Dir = filepath.Join(c.Dir, "etcd")
	config.ZapLoggerBuilder = embed.NewZapLoggerBuilder(newZap(c.Logger))
	config.MaxTxnOps = embeddedMaxOps
	config.MaxRequestBytes = 2 * embeddedMaxBytes
	config.EnableGRPCGateway = false
	config.ListenClientUrls, config.AdvertiseClientUrls = nil, []url.URL{{Scheme: "http", Host: "127.0.0.1:1"}}
	// Entries stay in memory until the next snapshot, and a batch may be megabytes.
	config.SnapshotCount, config.SnapshotCatchUpEntries = 1000, 500
	config.AutoCompactionMode, config.AutoCompactionRetention = "revision", "1000"

	if len(c.Members) <= 1 {
		config.TickMs, config.ElectionMs = singleTick, singleElection
		config.ListenPeerUrls = nil
		config.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:1"}}
		config.InitialCluster = c.Name + "=http://127.0.0.1:1"
		return config, nil
	}

	config.TickMs, config.ElectionMs = tick, election
	var cluster []string
	for _, name := range slices.Sorted(maps.Keys(c.Members)) {
		cluster = append(cluster, name+"="+c.Members[name])
	}
	config.InitialCluster = strings.Join(cluster, ",")
	own, err := url.Parse(c.Members[c.Name])
	if err != nil || own.Host == "" {
		return nil, fmt.Errorf("member %s: got URL %q, want https://HOST:PORT", c.Name, c.Members[c.Name])
	}
	config.AdvertisePeerUrls = []url.URL{*own}
	config.ListenPeerUrls = config.AdvertisePeerUrls
	if c.ListenPeer != "" {
		u, err := url.Parse(c.ListenPeer)
		if err != nil || u.Host == "" {
			return nil, fmt.Errorf("listen for members: got URL %q, want https://HOST:PORT", c.ListenPeer)
		}
		config.ListenPeerUrls = []url.URL{*u}
	}
	if c.TLS != nil {
		config.PeerTLSInfo = transport.TLSInfo{
			CertFile: c.TLS.Cert, KeyFile: c.TLS.Key, TrustedCAFile: c.TLS.CA, ClientCertAuth: true,
		}
		return config, nil
	}
	for name, text := range c.Members {
		if u, err := url.Parse(text); err != nil || !isLoopback(u.Hostname()) {
			return nil, fmt.Errorf("member %s at %s: TLS is needed between members that are not all on loopback", name, text)
		}
	}
	return config, nil
}

// checkDatabase opens the database once before etcd does: etcd opens it in a goroutine of its
// own, where a panic over damaged data could not be turned into an error.
func checkDatabase(path string) (err error) {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%s cannot be read: %v", path, r)
		}
	}()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, PreLoadFreelist: true, Timeout: time.Second})
	if err != nil {
		return fmt.Errorf("%s cannot be read: %w", path, err)
	}
	return db.Close()
}

// start starts the member. etcd ends the process, or panics, on data that it cannot read;
// both become errors while it starts.
func start(config *embed.Config) (member *embed.Etcd, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("cannot be read: %v", r)
		}
	}()
	return embed.StartEtcd(config)
}
