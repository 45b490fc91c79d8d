package registry

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// An etcd that is not ours takes few changes, and few bytes, in one transaction. More are
// made atomic by a journal: all changes are written beside the objects first, then one key
// says that they hold, then they are made piece by piece and the journal is removed. From
// the moment that key is there Load reads the objects as if all were made, and whoever leads
// next finishes the work. Without it the journal means nothing.
//
//	journal/data/000000, ...  pieces
//	journal/commit            the number of pieces

func (e *Etcd) journal() string { return e.prefix + "journal/" }

func (e *Etcd) pieceKey(i int) string { return fmt.Sprintf("%sdata/%06d", e.journal(), i) }

// size is about what a change takes in a request.
func (c Change) size() int { return len(c.key) + len(c.value) + 64 }

func sizeOf(changes []Change) (n int) {
	for _, c := range changes {
		n += c.size()
	}
	return n
}

// pieces cuts changes into lists that each fit a transaction.
func (e *Etcd) pieces(changes []Change) [][]Change {
	var out [][]Change
	from, bytes := 0, 0
	for i, c := range changes {
		if i > from && (i-from == e.maxOps || bytes+c.size() > e.maxBytes) {
			out = append(out, changes[from:i])
			from, bytes = i, 0
		}
		bytes += c.size()
	}
	return append(out, changes[from:])
}

// applyLarge makes changes that do not fit one transaction, all or none.
func (e *Etcd) applyLarge(ctx context.Context, f *fence, changes []Change) error {
	if err := e.prepare(ctx, f, changes); err != nil {
		return err
	}
	return e.finish(ctx, f)
}

// prepare writes the journal, up to and with the key that makes it hold.
func (e *Etcd) prepare(ctx context.Context, f *fence, changes []Change) error {
	pieces := e.pieces(changes)
	for i, p := range pieces {
		if err := e.txn(ctx, f, clientv3.OpPut(e.pieceKey(i), string(encodePiece(p)))); err != nil {
			return err
		}
	}
	return e.txn(ctx, f, clientv3.OpPut(e.journal()+"commit", fmt.Sprint(len(pieces))))
}

// finish makes the changes of a journal that holds, if there is one, and removes it. It may
// be repeated: making a change twice is making it once.
func (e *Etcd) finish(ctx context.Context, f *fence) error {
	changes, err := e.readJournal(ctx, 0)
	if err != nil {
		return err
	}
	if len(changes) > 0 {
		for _, p := range e.pieces(changes) {
			if err := e.txn(ctx, f, e.ops(p)...); err != nil {
				return err
			}
		}
	}
	// The commit key goes with the pieces, in one transaction: pieces without it mean nothing.
	return e.txn(ctx, f, clientv3.OpDelete(e.journal(), clientv3.WithPrefix()))
}

// readJournal returns the changes of a journal that holds, as of a revision; 0 means now.
func (e *Etcd) readJournal(ctx context.Context, revision int64) ([]Change, error) {
	commit, err := e.client.Get(ctx, e.journal()+"commit", clientv3.WithRev(revision))
	if err != nil {
		return nil, fmt.Errorf("registry: read journal: %w", err)
	}
	if len(commit.Kvs) == 0 {
		return nil, nil
	}
	var count int
	if _, err := fmt.Sscan(string(commit.Kvs[0].Value), &count); err != nil {
		return nil, fmt.Errorf("registry: journal: %w", err)
	}
	if revision == 0 {
		revision = commit.Header.Revision
	}
	var out []Change
	for i := range count {
		piece, err := e.client.Get(ctx, e.pieceKey(i), clientv3.WithRev(revision))
		if err != nil {
			return nil, fmt.Errorf("registry: read journal: %w", err)
		}
		if len(piece.Kvs) == 0 {
			return nil, fmt.Errorf("registry: journal: piece %d of %d is missing", i, count)
		}
		changes, err := decodePiece(piece.Kvs[0].Value)
		if err != nil {
			return nil, fmt.Errorf("registry: journal: piece %d: %w", i, err)
		}
		out = append(out, changes...)
	}
	return out, nil
}

// encodePiece writes changes as key and value in turn; a change without value removes.
func encodePiece(changes []Change) []byte {
	b := []byte{valueVersion}
	for _, c := range changes {
		b = protowire.AppendString(b, c.key)
		if c.value == nil {
			b = append(b, 0)
		} else {
			b = protowire.AppendBytes(append(b, 1), c.value)
		}
	}
	return b
}

func decodePiece(b []byte) ([]Change, error) {
	if len(b) == 0 || b[0] != valueVersion {
		return nil, errors.New("was written by a newer master")
	}
	var out []Change
	for b = b[1:]; len(b) > 0; {
		key, n := protowire.ConsumeString(b)
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		if b = b[n:]; len(b) == 0 || key == "" {
			return nil, errors.New("ends in the middle of a change")
		}
		c := Change{key: strings.Clone(key)}
		put := b[0] != 0
		b = b[1:]
		if put {
			value, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return nil, protowire.ParseError(n)
			}
			c.value, b = append([]byte{}, value...), b[n:]
		}
		out = append(out, c)
	}
	return out, nil
}
