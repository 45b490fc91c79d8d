package kit

import "context"

// Testing is *testing.T, without naming it: the program that runs kits for operators must not carry the testing
// package's flags.
type Testing[X any] interface {
	Run(name string, f func(X)) bool
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
	Logf(format string, args ...any)
	Helper()
	Failed() bool
	Cleanup(f func())
	Context() context.Context
}

// InTest runs cases as subtests of a *testing.T.
func InTest[X Testing[X]](t X) Runner { return inTest[X]{t} }

type inTest[X Testing[X]] struct{ t X }

func (r inTest[X]) Run(name string, f func(T)) {
	r.t.Helper()
	r.t.Run(name, func(t X) { f(t) })
}
