package docs

import "go/ast"

// funcName is the name of a function declaration without receiver, or "".
func funcName(d ast.Decl) string {
	f, ok := d.(*ast.FuncDecl)
	if !ok || f.Recv != nil {
		return ""
	}
	return f.Name.Name
}
