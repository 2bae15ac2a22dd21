/** Small choices a person made, kept in this browser where it allows that. */

export function read(key, otherwise) {
  try {
    return localStorage.getItem(`traind.${key}`) ?? otherwise;
  } catch {
    return otherwise;
  }
}

export function write(key, value) {
  try {
    localStorage.setItem(`traind.${key}`, value);
  } catch {
    // not kept, then
  }
}
