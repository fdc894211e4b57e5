package config

import (
	"encoding/json"
	"reflect"
)

// Schema is the JSON Schema (2020-12) of the file, made of the same types that read it.
func Schema() ([]byte, error) {
	schema := schemaOf(reflect.TypeFor[File]())
	schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	schema["title"] = "What an xdplb balancer should be"
	return json.MarshalIndent(schema, "", "  ")
}

func schemaOf(t reflect.Type) map[string]any {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if s, ok := scalars[t]; ok {
		return clone(s.schema)
	}
	if t.Kind() == reflect.Slice {
		return map[string]any{"type": "array", "items": schemaOf(t.Elem())}
	}
	fields, properties, required := fieldsOf(t), map[string]any{}, []string{}
	for _, name := range fields.names {
		f := fields.at[name]
		property := schemaOf(t.Field(f.index).Type)
		property["description"] = f.doc
		properties[name] = property
		if f.required {
			required = append(required, name)
		}
	}
	object := map[string]any{"type": "object", "properties": properties, "additionalProperties": false}
	if len(required) > 0 {
		object["required"] = required
	}
	if fields.short == "" {
		return object
	}
	short := schemaOf(t.Field(fields.at[fields.short].index).Type)
	return map[string]any{"anyOf": []any{short, object}}
}

func clone(m map[string]any) map[string]any {
	c := make(map[string]any, len(m)+1)
	for k, v := range m {
		c[k] = v
	}
	return c
}
