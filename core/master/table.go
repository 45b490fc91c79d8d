package master

import "iter"

// pageSize is the number of slots of a page. A change copies one page; publishing copies the list of
// pages if one was copied. 128 keeps both small for some objects and for a hundred thousand.
const pageSize = 128

// table holds the objects of one kind that the view shows, in numbered slots. It is changed by the
// loop only; snapshots of it are immutable and cost what changed since the last one.
type table[T any] struct {
	pages  []*page[T] // shared with the last snapshot unless fresh
	fresh  bool
	epoch  uint64
	free   []int
	length int // number of objects
}

// page belongs to the table while epoch is the table's own, and to snapshots afterwards.
type page[T any] struct {
	epoch uint64
	items [pageSize]*T
}

// snapshot is a table at one moment.
type snapshot[T any] struct {
	pages  []*page[T]
	length int
}

// add puts an object into a free slot and returns the slot.
func (t *table[T]) add(v *T) int {
	if len(t.free) == 0 {
		t.own()
		first := len(t.pages) * pageSize
		t.pages = append(t.pages, &page[T]{epoch: t.epoch})
		for i := pageSize - 1; i >= 0; i-- {
			t.free = append(t.free, first+i)
		}
	}
	slot := t.free[len(t.free)-1]
	t.free = t.free[:len(t.free)-1]
	t.page(slot).items[slot%pageSize] = v
	t.length++
	return slot
}

// set replaces the object in a slot.
func (t *table[T]) set(slot int, v *T) { t.page(slot).items[slot%pageSize] = v }

// get returns the object in a slot.
func (t *table[T]) get(slot int) *T { return t.pages[slot/pageSize].items[slot%pageSize] }

// remove empties a slot.
func (t *table[T]) remove(slot int) {
	t.page(slot).items[slot%pageSize] = nil
	t.free = append(t.free, slot)
	t.length--
}

// snapshot returns the table as it is now.
func (t *table[T]) snapshot() snapshot[T] {
	if t.fresh {
		t.fresh = false
		t.epoch++
	}
	return snapshot[T]{t.pages, t.length}
}

// own makes the list of pages the table's own.
func (t *table[T]) own() {
	if !t.fresh {
		t.pages = append(make([]*page[T], 0, len(t.pages)+1), t.pages...)
		t.fresh = true
	}
}

// page returns the page of a slot, to be changed.
func (t *table[T]) page(slot int) *page[T] {
	t.own()
	p := t.pages[slot/pageSize]
	if p.epoch != t.epoch {
		c := &page[T]{epoch: t.epoch, items: p.items}
		t.pages[slot/pageSize] = c
		return c
	}
	return p
}

// all yields the objects, in the order of slots.
func (s snapshot[T]) all() iter.Seq[*T] {
	return func(yield func(*T) bool) {
		for _, p := range s.pages {
			for _, v := range p.items {
				if v != nil && !yield(v) {
					return
				}
			}
		}
	}
}
