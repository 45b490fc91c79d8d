package registry

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"
)

const (
	defaultPrefix = "/mosaic"
	// defaultStoreTimeout is how long a transaction may take before the master gives up; as
	// long as Mesos's --registry_store_timeout.
	defaultStoreTimeout = 20 * time.Second
	// defaultLeaseTTL is how long the others wait for a leader that does not answer.
	defaultLeaseTTL = 5 * time.Second
	// defaultMaxOps is what etcd allows in one transaction unless told otherwise, less one for
	// the comparison with the term.
	defaultMaxOps = 127
	// defaultMaxBytes keeps a transaction below the 1.5 MiB that etcd takes unless told otherwise.
	defaultMaxBytes = 1 << 20
	// pageSize is how many keys are read at once: some hundred kilobytes with usual agents.
	pageSize = 1000
)

// EtcdConfig is where an etcd cluster is that Mosaic does not run itself.
type EtcdConfig struct {
	Endpoints []string // URLs or HOST:PORT
	Prefix    string   // below which the registry lies; "" means "/mosaic"
	TLS       *tls.Config
	Username  string
	Password  string
	// StoreTimeout bounds each transaction, LeaseTTL the time until another master takes over.
	// 0 means 20 s and 5 s.
	StoreTimeout time.Duration
	LeaseTTL     time.Duration
	// MaxTxnOps is etcd's --max-txn-ops. 0 means etcd's default, 128.
	MaxTxnOps int
	Logger    *slog.Logger
}

// Etcd is a store in etcd.
type Etcd struct {
	client   *clientv3.Client
	prefix   string // ends in a slash
	timeout  time.Duration
	ttl      time.Duration
	maxOps   int // changes and bytes in one transaction; what exceeds them takes the journal
	maxBytes int
	logger   *slog.Logger
	stop     func() // ends the embedded member, if there is one

	sizes sizes

	queue  chan *request
	ctx    context.Context // ends when the store is closed; bounds what the store does by itself
	cancel context.CancelFunc
	wg     sync.WaitGroup // the committer, and the watcher of each leadership

	mu      sync.Mutex // guards all below
	session *concurrency.Session
	fence   *fence
	closed  bool
}

// fence is what a transaction must find in place for its writer to lead.
type fence struct {
	key      string
	revision int64
	lost     chan struct{}
}

// request is one call of Apply.
type request struct {
	changes []Change
	fence   *fence
	done    chan error // has room for the answer
}

// OpenEtcd connects to an etcd cluster and returns once it has answered.
func OpenEtcd(ctx context.Context, c EtcdConfig) (*Etcd, error) {
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            c.Endpoints,
		TLS:                  c.TLS,
		Username:             c.Username,
		Password:             c.Password,
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 5 * time.Second,
		MaxCallRecvMsgSize:   64 << 20,
		Logger:               zap.NewNop(),
	})
	if err != nil {
		return nil, fmt.Errorf("registry: etcd at %s: %w", strings.Join(c.Endpoints, ","), err)
	}
	e := newEtcd(client, c, nil)
	if _, err := client.Get(ctx, e.prefix+"format"); err != nil {
		return nil, errors.Join(fmt.Errorf("registry: etcd at %s: %w", strings.Join(c.Endpoints, ","), err), e.Close())
	}
	return e, nil
}

// newEtcd starts the committer. stop is called last by Close.
func newEtcd(client *clientv3.Client, c EtcdConfig, stop func()) *Etcd {
	e := &Etcd{
		client:   client,
		prefix:   strings.TrimSuffix(c.Prefix, "/") + "/",
		timeout:  c.StoreTimeout,
		ttl:      c.LeaseTTL,
		maxOps:   c.MaxTxnOps - 1,
		maxBytes: defaultMaxBytes,
		logger:   c.Logger,
		stop:     stop,
		queue:    make(chan *request),
	}
	if c.Prefix == "" {
		e.prefix = defaultPrefix + "/"
	}
	if e.timeout == 0 {
		e.timeout = defaultStoreTimeout
	}
	if e.ttl == 0 {
		e.ttl = defaultLeaseTTL
	}
	if c.MaxTxnOps == 0 {
		e.maxOps = defaultMaxOps
	}
	if e.logger == nil {
		e.logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.wg.Go(e.commitAll)
	return e
}

func (e *Etcd) objects() string  { return e.prefix + "v1/" }
func (e *Etcd) election() string { return e.prefix + "election" }

// Load implements Store.
func (e *Etcd) Load(ctx context.Context) (*Snapshot, error) {
	values := make(map[string][]byte)
	prefix := e.objects()
	from, end, revision := prefix, clientv3.GetPrefixRangeEnd(prefix), int64(0)
	for {
		page, err := e.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(pageSize), clientv3.WithRev(revision))
		if err != nil {
			return nil, fmt.Errorf("registry: load: %w", err)
		}
		for _, kv := range page.Kvs {
			values[strings.TrimPrefix(string(kv.Key), prefix)] = kv.Value
		}
		if revision == 0 {
			revision = page.Header.Revision
		}
		if !page.More || len(page.Kvs) == 0 {
			break
		}
		from = string(page.Kvs[len(page.Kvs)-1].Key) + "\x00"
	}
	changes, err := e.readJournal(ctx, revision)
	if err != nil {
		return nil, err
	}
	for _, c := range changes {
		if c.value == nil {
			delete(values, c.key)
		} else {
			values[c.key] = c.value
		}
	}
	e.sizes.reset(values)
	return readSnapshot(values)
}

// Size implements Store.
func (e *Etcd) Size() int64 { return e.sizes.sum() }

// readSnapshot reads the values of objects.
func readSnapshot(values map[string][]byte) (*Snapshot, error) {
	s := newSnapshot()
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if err := s.load(key, values[key]); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Apply implements Store. Calls of several goroutines that come together share a transaction.
func (e *Etcd) Apply(ctx context.Context, changes []Change) error {
	changes, err := merge(changes)
	if err != nil {
		return err
	}
	for _, c := range changes {
		if c.size() > e.maxBytes {
			return fmt.Errorf("%w: %s takes %d bytes, at most %d", ErrTooLarge, c, c.size(), e.maxBytes)
		}
	}
	e.mu.Lock()
	fence, closed := e.fence, e.closed
	e.mu.Unlock()
	switch {
	case closed:
		return ErrClosed
	case fence == nil:
		return ErrNotLeader
	case len(changes) == 0:
		return nil
	}
	r := &request{changes: changes, fence: fence, done: make(chan error, 1)}
	select {
	case e.queue <- r:
	case <-ctx.Done():
		return fmt.Errorf("registry: apply: %w", ctx.Err())
	case <-e.ctx.Done():
		return ErrClosed
	}
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("registry: apply: %w", ctx.Err())
	}
}

// commitAll makes transactions of the requests until the store is closed. Whatever waits when
// one ends goes into the next.
func (e *Etcd) commitAll() {
	var next *request // did not fit the last transaction
	for {
		first := next
		next = nil
		if first == nil {
			select {
			case first = <-e.queue:
			case <-e.ctx.Done():
				return
			}
		}
		batch := []*request{first}
		count, bytes := len(first.changes), sizeOf(first.changes)
	gather:
		for {
			select {
			case r := <-e.queue:
				count += len(r.changes)
				bytes += sizeOf(r.changes)
				if r.fence != first.fence || count > e.maxOps || bytes > e.maxBytes {
					next = r
					break gather
				}
				batch = append(batch, r)
			default:
				break gather
			}
		}
		err := e.commit(batch)
		for _, r := range batch {
			r.done <- err
		}
	}
}

// commit makes the changes of several requests of the same leadership.
func (e *Etcd) commit(batch []*request) error {
	var all []Change
	for _, r := range batch {
		all = append(all, r.changes...)
	}
	all, err := merge(all)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(e.ctx, e.timeout)
	defer cancel()
	f := batch[0].fence
	if len(all) > e.maxOps || sizeOf(all) > e.maxBytes {
		if err = e.applyLarge(ctx, f, all); err != nil {
			// The journal may hold, and must not be laid over what would be written after it:
			// the next campaign looks.
			e.lose(f)
		}
	} else {
		err = e.txn(ctx, f, e.ops(all)...)
	}
	if errors.Is(err, ErrNotLeader) {
		e.lose(f)
		return ErrNotLeader
	}
	if err != nil {
		return fmt.Errorf("registry: apply %d changes: %w", len(all), err)
	}
	e.sizes.apply(all)
	return nil
}

func (e *Etcd) ops(changes []Change) []clientv3.Op {
	ops := make([]clientv3.Op, len(changes))
	for i, c := range changes {
		if c.value == nil {
			ops[i] = clientv3.OpDelete(e.objects() + c.key)
		} else {
			ops[i] = clientv3.OpPut(e.objects()+c.key, string(c.value))
		}
	}
	return ops
}

// txn makes one transaction, if the leadership still stands.
func (e *Etcd) txn(ctx context.Context, f *fence, ops ...clientv3.Op) error {
	answer, err := e.client.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(f.key), "=", f.revision)).
		Then(ops...).
		Commit()
	if err != nil {
		return err
	}
	if !answer.Succeeded {
		return ErrNotLeader
	}
	return nil
}

// candidate is the value of a key in the election.
type candidate struct {
	ID   string `json:"id"`
	Addr string `json:"addr"`
}

// campaignRetry is how long a campaign waits before it tries again: an etcd that elects its
// own leader needs about a second, so this loses little and asks little.
const campaignRetry = 200 * time.Millisecond

// Campaign implements Store. It goes on while etcd itself is between two leaders. What the
// same master left of an earlier life is cleared away first, so that it need not wait for
// itself: ids must not be used by two masters at once.
func (e *Etcd) Campaign(ctx context.Context, id, addr string) (Leadership, error) {
	value, err := json.Marshal(candidate{id, addr})
	if err != nil {
		return Leadership{}, fmt.Errorf("registry: campaign of %s: %w", id, err)
	}
	e.resign()
	for {
		l, err := e.campaign(ctx, id, string(value))
		switch {
		case err == nil:
			return l, nil
		case e.ctx.Err() != nil || errors.Is(err, ErrClosed):
			return Leadership{}, fmt.Errorf("registry: campaign of %s: %w", id, ErrClosed)
		case ctx.Err() != nil:
			return Leadership{}, fmt.Errorf("registry: campaign of %s: %w", id, err)
		}
		e.logger.Warn("campaign interrupted, trying again", "id", id, "error", err)
		select {
		case <-time.After(campaignRetry):
		case <-ctx.Done():
		case <-e.ctx.Done():
		}
	}
}

// resign ends the leadership that this store still holds, if any.
func (e *Etcd) resign() {
	e.mu.Lock()
	session, f := e.session, e.fence
	e.session = nil
	e.mu.Unlock()
	e.lose(f)
	if session != nil {
		session.Orphan() // the key it leaves is cleared by the campaign that follows
	}
}

// campaign tries once.
func (e *Etcd) campaign(ctx context.Context, id, value string) (Leadership, error) {
	candidates, err := e.client.Get(ctx, e.election()+"/", clientv3.WithPrefix())
	if err != nil {
		return Leadership{}, fmt.Errorf("list candidates: %w", err)
	}
	for _, kv := range candidates.Kvs {
		var c candidate
		if json.Unmarshal(kv.Value, &c) == nil && c.ID == id {
			if _, err := e.client.Delete(ctx, string(kv.Key)); err != nil {
				return Leadership{}, fmt.Errorf("clear earlier candidacy: %w", err)
			}
			if kv.Lease != 0 { // it would end by itself
				_, _ = e.client.Revoke(ctx, clientv3.LeaseID(kv.Lease))
			}
		}
	}
	lease, err := e.client.Grant(ctx, int64(max(1, e.ttl/time.Second)))
	if err != nil {
		return Leadership{}, fmt.Errorf("lease: %w", err)
	}
	// The session outlives this call: the store's context bounds it, not the caller's.
	session, err := concurrency.NewSession(e.client, concurrency.WithContext(e.ctx), concurrency.WithLease(lease.ID))
	if err != nil {
		return Leadership{}, fmt.Errorf("keep lease: %w", err)
	}
	// A session that ends while we wait for our turn would leave us waiting for nothing.
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(session.Ctx(), stop)()
	election := concurrency.NewElection(session, e.election())
	if err := election.Campaign(waiting, value); err != nil {
		return Leadership{}, errors.Join(err, e.revoke(session))
	}
	f := &fence{key: election.Key(), revision: election.Rev(), lost: make(chan struct{})}
	// What an earlier leader had decided and not finished comes first.
	if err := e.finish(ctx, f); err != nil {
		return Leadership{}, errors.Join(fmt.Errorf("finish the journal: %w", err), e.revoke(session))
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		session.Orphan()
		return Leadership{}, ErrClosed
	}
	e.session, e.fence = session, f
	e.wg.Go(func() {
		select {
		case <-session.Done():
		case <-f.lost:
		case <-e.ctx.Done():
		}
		e.lose(f)
	})
	e.logger.Info("leading", "term", f.revision, "id", id)
	return Leadership{Term: uint64(f.revision), Lost: f.lost}, nil
}

// revoke ends a session now, so that others need not wait until it runs out.
func (e *Etcd) revoke(s *concurrency.Session) error {
	s.Orphan()
	ctx, cancel := context.WithTimeout(context.Background(), e.ttl)
	defer cancel()
	_, err := e.client.Revoke(ctx, s.Lease())
	return err
}

// lose ends a leadership, once.
func (e *Etcd) lose(f *fence) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if f == nil || e.fence != f {
		return
	}
	e.fence = nil
	close(f.lost)
}

// Leader implements Store.
func (e *Etcd) Leader(ctx context.Context) (string, bool) {
	first, err := e.client.Get(ctx, e.election()+"/", clientv3.WithFirstCreate()...)
	if err != nil || len(first.Kvs) == 0 {
		return "", false
	}
	var c candidate
	if json.Unmarshal(first.Kvs[0].Value, &c) != nil {
		return "", false
	}
	return c.Addr, c.Addr != ""
}

// Close implements Store. Calls of Apply that have not been answered end with ErrClosed or
// with what became of them.
func (e *Etcd) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	session, f := e.session, e.fence
	e.session = nil
	e.mu.Unlock()
	e.lose(f)
	var err error
	if session != nil {
		err = e.revoke(session)
	}
	e.cancel()
	e.wg.Wait()
	if closeErr := e.client.Close(); closeErr != nil && !errors.Is(closeErr, context.Canceled) {
		err = errors.Join(err, closeErr)
	}
	if e.stop != nil {
		e.stop()
	}
	return err
}
