package allocator

import "math/rand/v2"

// turns hands out the members of a list at random, with a chance in proportion to their weights.
// Only as many are drawn as are asked for.
type turns[T any] struct {
	list   []T
	weight func(T) float64 // nil if all are equal
	most   float64         // the largest weight
}

// order returns the children of a node, to be drawn by weight. The list is made once in a cycle:
// drawing leaves a permutation of it, which is as good to draw from.
func (c *cycle) order(n *node) turns[*node] {
	if n.drawnIn == c.cycle {
		return n.turns
	}
	n.drawnIn = c.cycle
	t := turns[*node]{list: append(n.turns.list[:0], n.children...)}
	for _, x := range t.list {
		if t.most = max(t.most, x.weight); x.weight != t.list[0].weight {
			t.weight = (*node).chance
		}
	}
	n.turns = t
	return t
}

func (n *node) chance() float64 { return n.weight }

// inTurn returns the frameworks of a role that can be offered something, to be drawn.
func (c *cycle) inTurn(r *role) turns[*client] {
	if r.drawnIn != c.cycle {
		r.drawnIn = c.cycle
		r.turns.list = append(r.turns.list[:0], r.clients...)
	}
	return r.turns
}

// next draws one. The list must not be empty.
func (t *turns[T]) next(random *rand.Rand) T {
	i := t.draw(random)
	x, last := t.list[i], len(t.list)-1
	t.list[i], t.list[last] = t.list[last], x
	t.list = t.list[:last]
	return x
}

// maxDraws bounds the draws that are thrown away. Weights so far apart that this many are not
// enough are rare, and then every place is looked at.
const maxDraws = 64

// draw picks a place. Any is drawn, and kept with a chance that is its weight over the largest:
// that costs as many draws as the largest is above the mean, where adding up costs the whole list.
func (t *turns[T]) draw(random *rand.Rand) int {
	if t.weight == nil {
		return random.IntN(len(t.list))
	}
	for range maxDraws {
		i := random.IntN(len(t.list))
		if random.Float64()*t.most < t.weight(t.list[i]) {
			return i
		}
	}
	sum := 0.0
	for _, x := range t.list {
		sum += t.weight(x)
	}
	at := random.Float64() * sum
	for i, x := range t.list {
		if at -= t.weight(x); at < 0 {
			return i
		}
	}
	return len(t.list) - 1
}
