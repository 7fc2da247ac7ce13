// A kernel's arguments, listed once: from the list come the struct, the fill from what Python hands over, and names,
// kinds and shapes for Python to read. No order is written by a person.
//
//   #define HH_SUM(F)                            member of Sum      from Python
//     F(In, void, x, "rows d")                   const void* x      a tensor that is read; void: of the call's dtype
//     F(InOrNull, float, scale, "rows")          const float* scale the same, or None
//     F(Out, float, total, "d")                  float* total       a tensor that is written; OutOrNull likewise
//     F(Size, int, rows, "of x")                 int rows           an int; shapes name it
//     F(Real, float, factor, "of every row")     float factor       a float
//     F(InList, void, parts, "counts d")         List<const void*>  tensors, item j of counts[j] rows; OutList likewise
//     F(SizeList, int, counts, "of parts")       List<int>          ints
//     F(Group, Dropout, dropout, "of the rows")  Dropout dropout    its fields, as dropout_rng and so on
//   HH_RECORD(Sum, Call, HH_SUM)                 struct Sum : Call, whose fields come first
#pragma once
#include <string>
#include <type_traits>

namespace hh {
enum class Kind { In, InOrNull, Out, OutOrNull, Dtype, Size, Real, InList, OutList, SizeList, Group };

template <class T>
struct List {
  static constexpr int kRoom = 48;  // a kernel's parameters hold the list
  T at[kRoom];
  int count;
};

#define HH_TYPE_In(type) const type*
#define HH_TYPE_InOrNull(type) const type*
#define HH_TYPE_Out(type) type*
#define HH_TYPE_OutOrNull(type) type*
#define HH_TYPE_Dtype(type) type
#define HH_TYPE_Size(type) type
#define HH_TYPE_Real(type) type
#define HH_TYPE_InList(type) List<const type*>
#define HH_TYPE_OutList(type) List<type*>
#define HH_TYPE_SizeList(type) List<type>
#define HH_TYPE_Group(type) type

#define HH_MEMBER(kind, type, name, text) HH_TYPE_##kind(type) name;
#define HH_VISIT(kind, type, name, text) visit(Kind::kind, #name, this->name, text);
#define HH_RECORD(Name, Base, FIELDS) \
  struct Name : Base {                \
    FIELDS(HH_MEMBER)                 \
    template <class Visit>            \
    void each(Visit& visit) {         \
      Base::each(visit);              \
      FIELDS(HH_VISIT)                \
    }                                 \
  };

// The base of a record that has no other.
struct Nothing {
  template <class Visit>
  void each(Visit&) {}
};

template <class F>
constexpr bool is_list = false;
template <class T>
constexpr bool is_list<List<T>> = true;

// Fills a record from Python's arrays: tensors' addresses, whole numbers (a list: its length, then the items), reals.
struct Fill {
  void* const* tensors;
  const long long* sizes;
  const double* reals;
  bool fits = true;  // every list

  template <class F>
  void operator()(Kind kind, const char* name, F& field, const char* text) {
    if constexpr (std::is_pointer_v<F>) {
      field = static_cast<F>(*tensors++);
    } else if constexpr (std::is_integral_v<F>) {
      field = F(*sizes++);
    } else if constexpr (std::is_floating_point_v<F>) {
      field = F(*reals++);
    } else if constexpr (is_list<F>) {
      field.count = int(*sizes++);
      fits = fits && field.count <= F::kRoom;
      for (int j = 0; fits && j < field.count; j++) (*this)(kind, name, field.at[j], text);
    } else {
      field.each(*this);
    }
  }
};

inline const char* name_of(Kind kind) {
  constexpr const char* names[] = {"In",   "InOrNull", "Out",     "OutOrNull", "Dtype", "Size",
                                   "Real", "InList",   "OutList", "SizeList",  "Group"};
  return names[int(kind)];
}
template <class T>
constexpr const char* type_name() {
  if constexpr (std::is_void_v<T>) return "call";
  else if constexpr (std::is_same_v<T, float>) return "float32";
  else if constexpr (std::is_same_v<T, long long>) return "int64";
  else if constexpr (std::is_same_v<T, unsigned char>) return "bool";
  else return "int32";
}

// A line a field, in the order of `Fill`: kind, type of the elements, name, room of a list (else 1), text.
struct Describe {
  std::string lines, prefix;

  template <class F>
  void operator()(Kind kind, const char* name, F& field, const char* text) {
    if constexpr (std::is_pointer_v<F>) {
      add<std::remove_cv_t<std::remove_pointer_t<F>>>(kind, name, 1, text);
    } else if constexpr (is_list<F>) {
      using Item = std::remove_cv_t<std::remove_pointer_t<std::remove_extent_t<decltype(field.at)>>>;
      add<Item>(kind, name, F::kRoom, text);
    } else if constexpr (std::is_arithmetic_v<F>) {
      add<F>(kind, name, 1, text);
    } else {
      const std::string outer = prefix;
      prefix += std::string(name) + "_";
      field.each(*this);
      prefix = outer;
    }
  }

 private:
  template <class T>
  void add(Kind kind, const char* name, int room, const char* text) {
    lines += std::string(name_of(kind)) + " " + type_name<T>() + " " + prefix + name + " " + std::to_string(room) +
             " " + text + "\n";
  }
};

// The lines of a record's fields.
template <class Record>
const char* fields_of() {
  static const std::string lines = [] {
    Record record{};
    Describe describe;
    record.each(describe);
    return describe.lines;
  }();
  return lines.c_str();
}

// What every kernel is called with.
#define HH_CALL(F)                                         \
  F(Dtype, int, dtype, "0 float32, 1 bfloat16, 2 float16") \
  F(Size, int, d, "of a row: 64, 128 or 256")
HH_RECORD(Call, Nothing, HH_CALL)
}  // namespace hh
